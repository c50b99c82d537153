// Convolutions over time, channel by channel. Compiled once per instruction set (BESTOW_ISA).

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {

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

// Sums over all rows of all recordings: of every kPiece rows they stay in registers, and then go to the output, so that
// many rows are not one long chain of roundings.
void tap_gradients(const TapGradients& p, int64_t begin, int64_t end) {
  constexpr int64_t kTogether = 8;  // taps
  constexpr int64_t kPiece = 128;
  const int64_t last = end * kTapChannels < p.width ? end * kTapChannels : p.width;
  for (int64_t i = begin * kTapChannels; i < last; i += kLanes) {
    const int64_t n = p.width - i;
    for (int64_t first = 0; first < p.kernel; first += kTogether) {
      const int64_t taps = p.kernel - first < kTogether ? p.kernel - first : kTogether;
      float* to = p.out + first * p.width + i;
      for (int64_t t = 0; t < taps; ++t) store_some(to + t * p.width, zero(), n);
      for (int64_t b = 0; b < p.batch; ++b) {
        const float* gradient = p.gradient + b * p.rows * p.width + i;
        const float* x = p.x + (b * (p.rows + p.kernel - 1) + first) * p.width + i;
        for (int64_t row = 0; row < p.rows;) {
          const int64_t stop = p.rows - row < kPiece ? p.rows : row + kPiece;
          Vec sums[kTogether];
          for (Vec& sum : sums) sum = zero();
          for (; row < stop; ++row, gradient += p.width, x += p.width) {
            const Vec here = load_some(gradient, n);
            if (taps == kTogether) {  // a number that the compiler knows keeps the sums in registers
              for (int64_t t = 0; t < kTogether; ++t) sums[t] = fma(here, load_some(x + t * p.width, n), sums[t]);
            } else {
              for (int64_t t = 0; t < taps; ++t) sums[t] = fma(here, load_some(x + t * p.width, n), sums[t]);
            }
          }
          for (int64_t t = 0; t < taps; ++t)
            store_some(to + t * p.width, add(load_some(to + t * p.width, n), sums[t]), n);
        }
      }
    }
  }
}

}  // namespace bestow::BESTOW_ISA
