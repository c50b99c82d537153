// Mean and deviation of all frames so far, taken out frame by frame. Compiled once per instruction set (BESTOW_ISA);
// the compiler makes vectors of these loops by itself.

#include "bestow/cpu.h"

namespace bestow::BESTOW_ISA {

namespace {

void one_frame(const RunningMoments& p, const float* x, const float* __restrict means, double* __restrict weight,
               double* __restrict total, double* __restrict square, float* out) {
  const float smallest = p.smallest;
  const bool norm_vars = p.norm_vars;
  for (int64_t i = 0; i < p.bins; ++i) {
    // What is exactly 0 has been blanked: it does not count and stays 0.
    const float heard = x[i] != 0.0f ? 1.0f : 0.0f, off = (x[i] - means[i]) * heard;
    weight[i] += heard, total[i] += off, square[i] += off * off;
    const double share = 1.0 / weight[i];
    const float mean = static_cast<float>(total[i] * share);
    float variance = static_cast<float>(square[i] * share) - mean * mean;
    variance = variance < smallest ? smallest : variance;
    out[i] = (off - mean) * heard * (norm_vars ? 1.0f / __builtin_sqrtf(variance) : 1.0f);
  }
}

}  // namespace

void running_mvn(const RunningMoments& p, const float* x, int64_t frames, double* weight, double* total, double* square,
                 float* out) {
  for (int64_t t = 0; t < frames; ++t, x += p.bins, out += p.bins) one_frame(p, x, p.mean, weight, total, square, out);
}

}  // namespace bestow::BESTOW_ISA
