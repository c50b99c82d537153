// What a model reads of audio: log-mel frames, and the running mean and deviation taken out of them.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using bestow::chosen, bestow::numbers, bestow::ScalarType, bestow::Tensor;

// Samples begin ... begin + n - 1 of a recording, before which it stands mirrored, and behind which is silence.
void samples_around(const float* audio, int64_t samples, int64_t begin, int64_t n, float* out) {
  const int64_t before = std::min(std::max<int64_t>(-begin, 0), n);
  for (int64_t i = 0; i < before; ++i) out[i] = -begin - i < samples ? audio[-begin - i] : 0.0f;
  const int64_t from = begin + before, heard = std::min(std::max<int64_t>(samples - from, 0), n - before);
  if (heard > 0) std::memcpy(out + before, audio + from, heard * sizeof(float));
  std::fill(out + before + heard, out + n, 0.0f);
}

// Frames `first` to before `last` of several recordings, bounds (B, 2). Frame t's window has its middle at sample
// t * hop.
Tensor log_mel(std::vector<Tensor> audio, Tensor bounds, int64_t hop, Tensor window, Tensor turns, Tensor spans,
               Tensor filters, double floor) {
  const int64_t batch = audio.size(), size = window.numel(), bins = spans.dim() == 2 ? spans.size(0) : 0;
  STD_TORCH_CHECK(size >= 32 && (size & (size - 1)) == 0 && hop > 0 && bins > 0, "log_mel: windows of ", size,
                  " samples every ", hop, ", ", bins, " bins");
  bestow::LogMel p{size, hop, bins};
  p.window = numbers<float>(window, ScalarType::Float, size, "log_mel: window");
  p.turns = numbers<float>(turns, ScalarType::Float, 2 * size, "log_mel: turns");
  p.spans = numbers<int64_t>(spans, ScalarType::Long, 2 * bins, "log_mel: spans");
  p.floor = static_cast<float>(floor);
  int64_t weights = 0;
  for (int64_t bin = 0; bin < bins; ++bin) {
    const int64_t first = p.spans[2 * bin], count = p.spans[2 * bin + 1];
    STD_TORCH_CHECK(0 <= first && 0 <= count && first + count <= size / 2 + 1, "log_mel: filter ", bin);
    weights += count;
  }
  p.filters = numbers<float>(filters, ScalarType::Float, weights, "log_mel: filters");
  const int64_t* bound = numbers<int64_t>(bounds, ScalarType::Long, 2 * batch, "log_mel: bounds");

  struct Unit {
    const float* audio;
    int64_t samples, begin, frames, row, first;  // `begin`: the first sample under the windows
  };
  constexpr int64_t kFrames = 16;  // whole vectors of any instruction set
  std::vector<Unit> units;
  int64_t most = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t begin = bound[2 * b], count = bound[2 * b + 1] - begin, samples = audio[b].numel();
    STD_TORCH_CHECK(begin >= 0 && count >= 0, "log_mel: frames ", begin, " to ", bound[2 * b + 1]);
    const float* data = numbers<float>(audio[b], ScalarType::Float, samples, "log_mel: a recording");
    for (int64_t first = 0; first < count; first += kFrames)
      units.push_back({data, samples, (begin + first) * hop - size / 2, std::min(kFrames, count - first), b, first});
    most = std::max(most, count);
  }
  Tensor out = torch::stable::new_empty(window, {batch, most, bins});
  float* to = static_cast<float*>(out.data_ptr());
  for (int64_t b = 0; b < batch; ++b)
    std::fill(to + (b * most + bound[2 * b + 1] - bound[2 * b]) * bins, to + (b + 1) * most * bins, 0.0f);
  torch::stable::parallel_for(0, units.size(), 2, [&](int64_t begin, int64_t end) {
    float* scratch = static_cast<float*>(bestow::workspace(p.scratch()));
    std::vector<float> around;
    for (int64_t i = begin; i < end; ++i) {
      const Unit& unit = units[i];
      const int64_t n = (unit.frames - 1) * hop + size;
      const float* samples = unit.audio + unit.begin;
      if (unit.begin < 0 || unit.begin + n > unit.samples) {
        around.resize(n);
        samples_around(unit.audio, unit.samples, unit.begin, n, around.data());
        samples = around.data();
      }
      chosen().log_mel(p, samples, unit.frames, to + (unit.row * most + unit.first) * bins, scratch);
    }
  });
  return out;
}

// Rows x (B, T, M) of which the first `lengths` frames count; returns them normalised, 0 behind them, and the moments
// (B, 3, M) of all frames of the past and these: their number, their sum, the sum of their squares.
std::tuple<Tensor, Tensor> running_mvn(Tensor x, Tensor lengths, Tensor mean, Tensor moments, double smallest,
                                       bool norm_vars) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float,
                  "running_mvn: x must be float32 (B, T, M)");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), most = x.size(1), bins = x.size(2);
  const int64_t* counts = numbers<int64_t>(lengths, ScalarType::Long, batch, "running_mvn: lengths");
  const bestow::RunningMoments p{bins, numbers<float>(mean, ScalarType::Float, bins, "running_mvn: mean"),
                                 static_cast<float>(smallest), norm_vars};
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(0 <= counts[b] && counts[b] <= most, "running_mvn: ", counts[b], " of ", most, " frames");
  const double* before = numbers<double>(moments, ScalarType::Double, batch * 3 * bins, "running_mvn: moments");
  Tensor out = torch::stable::new_empty(x, {batch, most, bins});
  Tensor after = torch::stable::new_empty(moments, {batch, 3, bins});
  float* to = static_cast<float*>(out.data_ptr());
  const float* from = static_cast<const float*>(x.data_ptr());
  double* sums = static_cast<double*>(after.data_ptr());
  std::memcpy(sums, before, batch * 3 * bins * sizeof(double));
  torch::stable::parallel_for(0, batch, 1 + 4096 / (most * bins + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t row = b * most * bins;
      double* own = sums + b * 3 * bins;
      chosen().running_mvn(p, from + row, counts[b], own, own + bins, own + 2 * bins, to + row);
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
  // x (B, T, M), lengths (B), mean (M), moments (B, 3, M) -> (B, T, M), and moments
  m.def(
      "running_mvn(Tensor x, Tensor lengths, Tensor mean, Tensor moments, float smallest, bool norm_vars) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("log_mel", TORCH_BOX(&log_mel));
  m.impl("running_mvn", TORCH_BOX(&running_mvn));
}
