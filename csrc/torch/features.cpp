// What a model reads of audio as ops: log-mel frames, and the running mean and deviation taken out of them.

#include "features.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

namespace {

using bestow::numbers, bestow::ScalarType, bestow::Tensor;

// Frames `first` to before `last` of several recordings, bounds (B, 2).
Tensor log_mel(std::vector<Tensor> audio, Tensor bounds, int64_t hop, Tensor window, Tensor turns, Tensor spans,
               Tensor filters, double floor) {
  const bestow::MelFrames mel(hop, window, turns, spans, filters, floor);
  const int64_t batch = audio.size(), bins = mel.p.bins;
  const int64_t* bound = numbers<int64_t>(bounds, ScalarType::Long, 2 * batch, "log_mel: bounds");

  struct Unit {
    bestow::Recording of;
    int64_t first, frames, to;  // `to`: the row it goes to
  };
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(0 <= bound[2 * b] && bound[2 * b] <= bound[2 * b + 1], "log_mel: frames ", bound[2 * b], " to ",
                    bound[2 * b + 1]);
    most = std::max(most, bound[2 * b + 1] - bound[2 * b]);
  }
  Tensor out = torch::stable::new_empty(window, {batch, most, bins});
  float* to = static_cast<float*>(out.data_ptr());
  std::vector<Unit> units;
  for (int64_t b = 0; b < batch; ++b) {
    const bestow::Recording of(audio[b]);
    const int64_t first = bound[2 * b], count = bound[2 * b + 1] - first;
    for (int64_t i = 0; i < count; i += mel.kAtOnce)
      units.push_back({of, first + i, std::min(mel.kAtOnce, count - i), b * most + i});
    std::fill(to + (b * most + count) * bins, to + (b + 1) * most * bins, 0.0f);
  }
  torch::stable::parallel_for(0, units.size(), 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) mel(units[i].of, units[i].first, units[i].frames, to + units[i].to * bins);
  });
  return out;
}

// Rows x (B, T, M) of which the first `lengths` frames count; returns them normalised, 0 behind them, and the moments
// (B, 3, M) of all frames of the past and these: their number, their sum, the sum of their squares.
std::tuple<Tensor, Tensor> running_mvn(Tensor x, Tensor lengths, Tensor moments, Tensor mean, double smallest,
                                       bool norm_vars) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float,
                  "running_mvn: x must be float32 (B, T, M)");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), most = x.size(1), bins = x.size(2);
  const int64_t* counts = numbers<int64_t>(lengths, ScalarType::Long, batch, "running_mvn: lengths");
  const bestow::RunningMVN normalize(bins, mean, smallest, norm_vars);
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(0 <= counts[b] && counts[b] <= most, "running_mvn: ", counts[b], " of ", most, " frames");
  const double* before = numbers<double>(moments, ScalarType::Double, batch * 3 * bins, "running_mvn: moments");
  Tensor out = torch::stable::new_empty(x, {batch, most, bins});
  Tensor after = torch::stable::new_empty(moments, {batch, 3, bins});
  float* to = static_cast<float*>(out.data_ptr());
  double* sums = static_cast<double*>(after.data_ptr());
  std::memcpy(sums, before, batch * 3 * bins * sizeof(double));
  torch::stable::parallel_for(0, batch, 1 + 4096 / (most * bins + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * most * bins;
      normalize(bestow::floats(x) + row, counts[b], sums + b * 3 * bins, to + row);
      std::fill(to + row + counts[b] * bins, to + row + most * bins, 0.0f);
    }
  });
  return {out, after};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // recordings and bounds (B, 2) of their frames; window (N), turns (2, N), spans (M, 2) of filters (all weights) ->
  // (B, T, M)
  m.def(
      "log_mel(Tensor[] audio, Tensor bounds, int hop, Tensor window, Tensor turns, Tensor spans, Tensor filters, "
      "float floor) -> Tensor");
  // x (B, T, M), lengths (B), moments (B, 3, M), mean (M) -> (B, T, M), and moments
  m.def(
      "running_mvn(Tensor x, Tensor lengths, Tensor moments, Tensor mean, float smallest, bool norm_vars) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("log_mel", TORCH_BOX(&log_mel));
  m.impl("running_mvn", TORCH_BOX(&running_mvn));
}
