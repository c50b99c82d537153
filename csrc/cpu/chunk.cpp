// What lies between the products of a conformer block, for the few frames of a chunk: norms, gates, the convolution
// over time, and attention with relative positions. Compiled once per instruction set (BESTOW_ISA), like staircase.cpp.

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

inline Vec load_some(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_first(p, n); }
inline void store_some(float* p, Vec x, int64_t n) { n >= kLanes ? store(p, x) : store_first(p, x, n); }

// 1 / (1 + e^-x), without e to a positive power.
inline Vec sigmoid(Vec x) {
  const Vec minus = sub(zero(), x);
  const Vec top = exp_negative(sub(zero(), max(minus, zero())));  // e^min(x, 0)
  const Vec small = exp_negative(sub(zero(), max(x, minus)));     // e^-|x|
  return div(top, add(splat(1.0f), small));
}

// a . b of n floats.
inline float dot(const float* a, const float* b, int64_t n) {
  Vec total = zero();
  for (int64_t i = 0; i < n; i += kLanes) total = fma(load_some(a + i, n - i), load_some(b + i, n - i), total);
  return sum(total);
}

// Four of them, of one row a with rows of b that are `stride` apart.
inline void four_dots(const float* a, const float* b, int64_t stride, int64_t n, float (&out)[4]) {
  Vec total[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec x = load_some(a + i, n - i);
    for (int r = 0; r < 4; ++r) total[r] = fma(x, load_some(b + r * stride + i, n - i), total[r]);
  }
  for (int r = 0; r < 4; ++r) out[r] = sum(total[r]);
}

}  // namespace

void norm(const NormRows& p, int64_t begin, int64_t end) {
  const float count = static_cast<float>(p.width);
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + row * p.width;
    float* out = p.out + row * p.width;
    Vec total = zero();
    if (p.bias != nullptr)
      for (int64_t i = 0; i < p.width; i += kLanes) total = add(total, load_some(x + i, p.width - i));
    const Vec mean = splat(sum(total) / count);
    total = zero();
    for (int64_t i = 0; i < p.width; i += kLanes) {
      const Vec off = keep(sub(load_some(x + i, p.width - i), mean), zero(), p.width - i);
      total = fma(off, off, total);
    }
    const Vec scale = splat(1.0f / __builtin_sqrtf(sum(total) / count + p.eps));
    for (int64_t i = 0; i < p.width; i += kLanes) {
      const int64_t n = p.width - i;
      const Vec bias = p.bias == nullptr ? zero() : load_some(p.bias + i, n);
      store_some(out + i, fma(mul(sub(load_some(x + i, n), mean), scale), load_some(p.weight + i, n), bias), n);
    }
  }
}

void gate(const float* x, const float* by, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes)
    store_some(out + i, mul(load_some(x + i, n - i), sigmoid(load_some(by + i, n - i))), n - i);
}

void convolve(const Taps& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t i = 0; i < p.width; i += kLanes) {
      const int64_t n = p.width - i;
      Vec total = p.bias == nullptr ? zero() : load_some(p.bias + i, n);
      for (int64_t t = 0; t < p.kernel; ++t)
        total = fma(load_some(p.x + (row + t) * p.width + i, n), load_some(p.taps + t * p.width + i, n), total);
      store_some(p.out + row * p.width + i, total, n);
    }
  }
}

void chunk_attention(const ChunkAttention& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t d = p.head, D = p.heads * d;
  float *by_content = scratch, *by_place = by_content + d, *scores = by_place + d;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t h = unit % p.heads, b = unit / p.heads;
    const float* keys = p.window + b * p.window_batch + h * d;
    const float* mask = p.mask == nullptr ? nullptr : p.mask + b * p.frames;
    for (int64_t i = 0; i < p.chunk; ++i) {
      const float* q = p.qkv + (b * p.chunk + i) * 3 * D + h * d;
      for (int64_t e = 0; e < d; ++e) {
        by_content[e] = (q[e] + p.bias_content[h * d + e]) * p.scale;
        by_place[e] = q[e] + p.bias_place[h * d + e];
      }
      const float* places = p.relative + (h * (p.frames + p.chunk - 1) + p.chunk - 1 - i) * d;
      float most = -__builtin_inff();
      for (int64_t j = 0; j < p.frames; j += 4) {
        float content[4], place[4];
        const int64_t n = p.frames - j < 4 ? p.frames - j : 4;
        if (n == 4) {
          four_dots(by_content, keys + j * p.window_frame, p.window_frame, d, content);
          four_dots(by_place, places + j * d, d, d, place);
        } else {
          for (int64_t r = 0; r < n; ++r) {
            content[r] = dot(by_content, keys + (j + r) * p.window_frame, d);
            place[r] = dot(by_place, places + (j + r) * d, d);
          }
        }
        for (int64_t r = 0; r < n; ++r) {
          scores[j + r] = content[r] + place[r] + (mask == nullptr ? 0.0f : mask[j + r]);
          most = scores[j + r] > most ? scores[j + r] : most;
        }
      }
      Vec total = zero();
      for (int64_t j = 0; j < p.frames; j += kLanes) {
        const int64_t n = p.frames - j;
        const Vec weight = keep(exp_negative(sub(load_some(scores + j, n), splat(most))), zero(), n);
        total = add(total, weight);
        store_some(scores + j, weight, n);
      }
      const Vec share = splat(1.0f / sum(total));
      float* out = p.out + (b * p.chunk + i) * D + h * d;
      for (int64_t e = 0; e < d; e += kLanes) {
        Vec mean = zero();
        for (int64_t j = 0; j < p.frames; ++j)
          mean = fma(splat(scores[j]), load_some(keys + j * p.window_frame + D + e, d - e), mean);
        store_some(out + e, mul(mean, share), d - e);
      }
    }
  }
}

}  // namespace bestow::BESTOW_ISA
