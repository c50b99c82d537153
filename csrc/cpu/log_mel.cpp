// Log-mel frames of audio, as many at once as a vector has lanes: every number of the transform is a vector of that
// number in so many frames, and no step moves anything across lanes. Compiled once per instruction set (BESTOW_ISA).
//
// A frame's N windowed samples are taken for N / 2 complex numbers (even ones real, odd ones imaginary), transformed in
// steps of four that leave them in order (Stockham), and taken apart into the powers of N / 2 + 1 frequencies.

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

struct Complex {
  Vec re, im;
};
inline Complex operator+(Complex a, Complex b) { return {add(a.re, b.re), add(a.im, b.im)}; }
inline Complex operator-(Complex a, Complex b) { return {sub(a.re, b.re), sub(a.im, b.im)}; }
inline Complex times_i(Complex a) { return {sub(zero(), a.im), a.re}; }

// An array of complex vectors.
struct Field {
  float* data;
  Complex get(int64_t i) const { return {load(data + 2 * i * kLanes), load(data + (2 * i + 1) * kLanes)}; }
  void put(int64_t i, Complex x) const { store(data + 2 * i * kLanes, x.re), store(data + (2 * i + 1) * kLanes, x.im); }
};

// e^(-2 pi i n / N).
struct Turns {
  const float *cos, *sin;
  Complex times(Complex x, int64_t n) const {
    const Vec c = splat(cos[n]), s = splat(sin[n]);
    return {fma(x.re, c, mul(x.im, s)), sub(mul(x.im, c), mul(x.re, s))};
  }
};

// ln x of normal numbers above 0.
inline Vec log_positive(Vec x) {
  Vec m, e = exponent(x, m);  // x = m 2^e, m in 1 ... 2
  const Vec root = splat(1.41421356f);
  e = where_below(m, root, e, add(e, splat(1.0f))), m = where_below(m, root, m, mul(m, splat(0.5f)));
  // 2 artanh(s) = ln m
  const Vec s = div(sub(m, splat(1.0f)), add(m, splat(1.0f))), square = mul(s, s);
  Vec p = splat(2.0f / 9);
  p = fma(p, square, splat(2.0f / 7));
  p = fma(p, square, splat(2.0f / 5));
  p = fma(p, square, splat(2.0f / 3));
  p = fma(mul(p, square), s, add(s, s));
  // ln 2 in two parts: the first times a whole number is exact.
  return fma(e, splat(0.693145752f), fma(e, splat(1.42860677e-6f), p));
}

// The windowed samples of some frames, pairs of them as complex numbers.
void cut(const LogMel& p, const float* samples, int64_t frames, Field out) {
  for (int64_t n = 0; n < p.size; n += kLanes) {
    Vec x[kLanes];
    for (int l = 0; l < kLanes; ++l) x[l] = l < frames ? load(samples + l * p.hop + n) : zero();
    transpose(x);
    for (int i = 0; i < kLanes; ++i) store(out.data + (n + i) * kLanes, mul(x[i], splat(p.window[n + i])));
  }
}

// One step of four: of `length` numbers, `stride` sequences beside each other.
void step_of_four(const Turns& turns, int64_t size, int64_t length, int64_t stride, Field x, Field y) {
  const int64_t quarter = length / 4, turn = size / length;
  for (int64_t p = 0; p < quarter; ++p) {
    for (int64_t q = 0; q < stride; ++q) {
      const int64_t from = q + stride * p, to = q + stride * 4 * p, apart = stride * quarter;
      const Complex a = x.get(from), b = x.get(from + apart), c = x.get(from + 2 * apart), d = x.get(from + 3 * apart);
      const Complex even = a + c, odd = b + d, off = a - c, turned = times_i(b - d);
      y.put(to, even + odd);
      y.put(to + stride, turns.times(off - turned, p * turn));
      y.put(to + 2 * stride, turns.times(even - odd, 2 * p * turn));
      y.put(to + 3 * stride, turns.times(off + turned, 3 * p * turn));
    }
  }
}

// The transform of `count` complex numbers in x, with y for the way; returns where it is.
Field transform(const Turns& turns, int64_t size, int64_t count, Field x, Field y) {
  int64_t length = count, stride = 1;
  for (; length >= 4; length /= 4, stride *= 4) {
    step_of_four(turns, size, length, stride, x, y);
    const Field swapped = x;
    x = y, y = swapped;
  }
  if (length == 1) return x;
  for (int64_t q = 0; q < stride; ++q) {
    const Complex a = x.get(q), b = x.get(q + stride);
    y.put(q, a + b), y.put(q + stride, a - b);
  }
  return y;
}

// |X_k|^2 of the N real numbers whose pairs z is the transform of, k from 0 to N / 2.
void powers(const Turns& turns, int64_t half, Field z, float* out) {
  const Complex first = z.get(0);
  const Vec low = add(first.re, first.im), high = sub(first.re, first.im);
  store(out, mul(low, low)), store(out + half * kLanes, mul(high, high));
  const Vec quarter = splat(0.25f);
  for (int64_t k = 1; k <= half / 2; ++k) {
    const Complex a = z.get(k), b = z.get(half - k);
    // Twice what the even and the odd samples alone would give.
    const Complex even{add(a.re, b.re), sub(a.im, b.im)}, odd{add(a.im, b.im), sub(b.re, a.re)};
    const Complex turned = turns.times(odd, k), plus = even + turned, minus = even - turned;
    store(out + k * kLanes, mul(quarter, fma(plus.re, plus.re, mul(plus.im, plus.im))));
    store(out + (half - k) * kLanes, mul(quarter, fma(minus.re, minus.re, mul(minus.im, minus.im))));
  }
}

}  // namespace

void log_mel(const LogMel& p, const float* samples, int64_t frames, float* out, float* scratch) {
  const Turns turns{p.turns, p.turns + p.size};
  const int64_t half = p.size / 2;
  const Field x{scratch}, y{scratch + p.size * kLanes};
  float* power = y.data + p.size * kLanes;
  for (; frames > 0; frames -= kLanes, samples += kLanes * p.hop, out += kLanes * p.bins) {
    cut(p, samples, frames, x);
    powers(turns, half, transform(turns, p.size, half, x, y), power);
    const float* filter = p.filters;
    for (int64_t bin = 0; bin < p.bins; bin += kLanes) {
      const int64_t bins = p.bins - bin < kLanes ? p.bins - bin : kLanes;
      Vec mel[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        mel[i] = zero();
        if (i >= bins) continue;
        const float* from = power + p.spans[2 * (bin + i)] * kLanes;
        for (int64_t k = 0; k < p.spans[2 * (bin + i) + 1]; ++k)
          mel[i] = fma(splat(*filter++), load(from + k * kLanes), mel[i]);
        mel[i] = log_positive(max(mel[i], splat(p.floor)));
      }
      transpose(mel);
      const int64_t rows = frames < kLanes ? frames : kLanes;
      for (int64_t l = 0; l < rows; ++l) store_first(out + l * p.bins + bin, mel[l], bins);
    }
  }
}

}  // namespace bestow::BESTOW_ISA
