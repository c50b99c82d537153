// What lies between the products of a conformer block, for the few frames of a chunk: norms, gates, and attention with
// relative positions. Compiled once per instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include "bestow/cpu.h"
#include "bestow/products.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

inline int64_t vectors(int64_t n) { return round_up(n, kLanes) / kLanes; }

// 1 / (1 + e^-x), without e to a positive power.
inline Vec sigmoid(Vec x) {
  const Vec one = splat(1.0f), small = exp_negative(sub(zero(), max(x, sub(zero(), x))));  // e^-|x|
  return div(where_below(x, zero(), small, one), add(one, small));
}

// Keys (frames, d) of one head, `frame` apart, as columns (d, pitch); until a vector is full, columns beyond theirs are
// 0.
void turn_keys(const float* keys, int64_t frame, int64_t frames, int64_t d, int64_t pitch, float* turned) {
  for (int64_t j = 0; j < frames; j += kLanes) {
    for (int64_t e = 0; e < d; e += kLanes) {
      const int64_t wide = d - e < kLanes ? d - e : kLanes;
      Vec x[kLanes];
      for (int r = 0; r < kLanes; ++r) x[r] = j + r < frames ? load_some(keys + (j + r) * frame + e, wide) : zero();
      transpose(x);
      for (int64_t r = 0; r < wide; ++r) store(turned + (e + r) * pitch + j, x[r]);
    }
  }
}

// Up to so many queries read values together: as many sums as an adder works on at a time.
constexpr int kQueriesTogether = 8;

// What R queries read in n <= kLanes columns of values, by their weights (R, pitch).
template <int R = kQueriesTogether>
void read_values(int64_t rows, const float* weights, int64_t pitch, const float* values, int64_t frame, int64_t frames,
                 int64_t n, float* out, int64_t row) {
  if constexpr (R > 1) {
    if (rows < R) return read_values<R - 1>(rows, weights, pitch, values, frame, frames, n, out, row);
  }
  Vec sums[R];
  for (Vec& each : sums) each = zero();
  for (int64_t j = 0; j < frames; ++j) {
    const Vec value = load_some(values + j * frame, n);
    for (int r = 0; r < R; ++r) sums[r] = fma(splat(weights[r * pitch + j]), value, sums[r]);
  }
  for (int r = 0; r < R; ++r) store_some(out + r * row, sums[r], n);
}

// Scores by content (frames), to which those by place are added, become weights that add up to 1, with zeros behind
// them until a vector is full.
void soften(int64_t frames, const float* by_place, float* scores) {
  Vec high = splat(-__builtin_inff());
  for (int64_t j = 0; j < frames; j += kLanes) {
    const Vec x = keep(add(load(scores + j), load(by_place + j)), splat(-__builtin_inff()), frames - j);
    high = max(x, high);
    store(scores + j, x);
  }
  const Vec top = splat(greatest(high));
  Vec total = zero();
  for (int64_t j = 0; j < frames; j += kLanes) {
    const Vec weight = keep(exp_negative(sub(load(scores + j), top)), zero(), frames - j);
    total = add(total, weight);
    store(scores + j, weight);
  }
  const Vec share = splat(1.0f / sum(total));
  for (int64_t j = 0; j < frames; j += kLanes) store(scores + j, mul(load(scores + j), share));
}

// The weights (rows, pitch) with which queries i ... i + rows - 1 of a window look at what they see: keys turned
// (d, pitch).
void weigh(const ChunkAttention& p, const ChunkWindow& window, int64_t h, int64_t i, int64_t rows, const float* turned,
           float* scratch, float* weights) {
  const int64_t d = p.head, pitch = p.pitch(), wide = pitch + 16;  // see ChunkAttention::scratch
  float *content = scratch, *place = content + rows * d, *by_place = place + rows * d;
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = p.queries + (window.row + i + r) * p.query_row + h * d;
    for (int64_t e = 0; e < d; ++e) {
      content[r * d + e] = (q[e] + p.bias_content[h * d + e]) * p.scale;
      place[r * d + e] = q[e] + p.bias_place[h * d + e];
    }
  }
  const int64_t seen = window.seen, columns = seen + rows - 1;
  multiply<Plain, false>(rows, {content, d, 1, turned, pitch, kLanes, weights, pitch, d, vectors(seen)});
  // The last query is the farthest from the first key; each before it finds its keys one column farther on.
  const float* first = p.relative + h * d * p.places + p.size - (window.first + i + rows);
  multiply<Plain, false>(rows, {place, d, 1, first, p.places, kLanes, by_place, wide, d, vectors(columns)});
  for (int64_t r = 0; r < rows; ++r) soften(seen, by_place + r * wide + rows - 1 - r, weights + r * pitch);
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

// x (1 + erf(x / sqrt 2)) / 2; erf by Abramowitz and Stegun's 7.1.26, off by 1.5e-7 at most.
void gelu(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec value = load_some(x + i, n - i), minus = sub(zero(), value), size = max(value, minus);
    const Vec t = div(splat(1.0f), fma(size, splat(0.3275911f * 0.70710678f), splat(1.0f)));
    Vec p = splat(1.061405429f);
    p = fma(p, t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    // The share of a normal distribution that lies farther out on one side.
    const Vec tail = mul(mul(mul(p, t), exp_negative(mul(mul(value, value), splat(-0.5f)))), splat(0.5f));
    const Vec share = where_below(value, zero(), tail, sub(splat(1.0f), tail));
    store_some(out + i, mul(value, share), n - i);
  }
}

void chunk_attention(const ChunkAttention& p, int64_t begin, int64_t end, float* scratch) {
  const int64_t d = p.head, D = p.heads * d, pitch = p.pitch();
  float *turned = scratch, *weights = turned + d * pitch, *rest = weights + p.chunk * pitch;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t h = unit % p.heads;
    const ChunkWindow& window = p.windows[unit / p.heads];
    const int64_t seen = window.seen, chunk = window.chunk;
    const float *keys = window.data + h * d, *values = keys + D;
    turn_keys(keys, 2 * D, seen, d, pitch, turned);
    for (int64_t i = 0; i < chunk; i += kTileRows)
      weigh(p, window, h, i, least(kTileRows, chunk - i), turned, rest, weights + i * pitch);
    for (int64_t i = 0; i < chunk; i += kQueriesTogether) {
      for (int64_t e = 0; e < d; e += kLanes)
        read_values(chunk - i, weights + i * pitch, pitch, values + e, 2 * D, seen, d - e,
                    p.out + (window.row + i) * D + h * d + e, D);
    }
  }
}

}  // namespace bestow::BESTOW_ISA
