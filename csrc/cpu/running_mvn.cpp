// Mean and deviation of all frames so far, taken out frame by frame. Compiled once per instruction set (BESTOW_ISA);
// the compiler fits these vectors to it.

#include "bestow/cpu.h"

namespace bestow::BESTOW_ISA {

namespace {

constexpr int64_t kBins = 8;  // whose sums stay in registers from frame to frame
typedef float Floats __attribute__((vector_size(kBins * sizeof(float))));
typedef double Doubles __attribute__((vector_size(kBins * sizeof(double))));
typedef int32_t Whether __attribute__((vector_size(kBins * sizeof(int32_t))));

// The first n of a vector; there are as many in memory.
template <class V, class T>
void read(V& x, const T* from, int64_t n) {
  if (n >= kBins) {
    __builtin_memcpy(&x, from, sizeof x);
  } else {
    x = V{};
    __builtin_memcpy(&x, from, n * sizeof(T));
  }
}
template <class V, class T>
void write(T* to, const V& x, int64_t n) {
  __builtin_memcpy(to, &x, n >= kBins ? sizeof x : n * sizeof(T));
}

#define BESTOW_AS(V, x) __builtin_convertvector(x, V)

void some_bins(const RunningMoments& p, const float* x, const float* means, int64_t frames, int64_t n, double* weights,
               double* totals, double* squares, float* out) {
  Floats prior;
  Doubles weight, total, square;
  read(prior, means, n), read(weight, weights, n), read(total, totals, n), read(square, squares, n);
  const Floats none = {}, smallest = none + p.smallest;
  for (int64_t t = 0; t < frames; ++t, x += p.bins, out += p.bins) {
    Floats here;
    read(here, x, n);
    // What is exactly 0 has been blanked: it does not count and stays 0.
    const Floats heard = BESTOW_AS(Floats, -(here != none)), off = (here - prior) * heard;
    weight += BESTOW_AS(Doubles, heard), total += BESTOW_AS(Doubles, off), square += BESTOW_AS(Doubles, off * off);
    // float32 counts frames exactly for days, and its share of the sums is as exact as what becomes of them.
    const Doubles share = BESTOW_AS(Doubles, 1.0f / BESTOW_AS(Floats, weight));
    const Floats mean = BESTOW_AS(Floats, total * share);
    Floats result = (off - mean) * heard;
    if (p.norm_vars) {
      const Floats variance = BESTOW_AS(Floats, square * share) - mean * mean;
      const Whether small = variance < smallest;
      Floats deviation = small ? smallest : variance;
      for (int64_t i = 0; i < kBins; ++i) deviation[i] = __builtin_sqrtf(deviation[i]);
      result /= deviation;
    }
    write(out, result, n);
  }
  write(weights, weight, n), write(totals, total, n), write(squares, square, n);
}

#undef BESTOW_AS

}  // namespace

void running_mvn(const RunningMoments& p, const float* x, int64_t frames, double* weight, double* total, double* square,
                 float* out) {
  for (int64_t i = 0; i < p.bins; i += kBins)
    some_bins(p, x + i, p.mean + i, frames, p.bins - i, weight + i, total + i, square + i, out + i);
}

}  // namespace bestow::BESTOW_ISA
