// What a model reads of audio, frame by frame.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace bestow {

// One recording's samples, before which it stands mirrored, and behind which is silence.
struct Recording {
  const float* audio;
  int64_t samples;

  explicit Recording(const Tensor& x)
      : audio(numbers<float>(x, ScalarType::Float, x.numel(), "log_mel: a recording")), samples(x.numel()) {}

  // Samples begin ... begin + n - 1.
  void around(int64_t begin, int64_t n, float* out) const {
    const int64_t before = std::min(std::max<int64_t>(-begin, 0), n);
    for (int64_t i = 0; i < before; ++i) out[i] = -begin - i < samples ? audio[-begin - i] : 0.0f;
    const int64_t from = begin + before, heard = std::min(std::max<int64_t>(samples - from, 0), n - before);
    if (heard > 0) std::memcpy(out + before, audio + from, heard * sizeof(float));
    std::fill(out + before + heard, out + n, 0.0f);
  }
};

// Log-mel frames. Frame t's window has its middle at sample t * hop.
struct MelFrames {
  static constexpr int64_t kAtOnce = 16;  // whole vectors of any instruction set
  LogMel p;

  // window (N), turns (2, N), spans (M, 2) of filters (all weights)
  MelFrames(int64_t hop, const Tensor& window, const Tensor& turns, const Tensor& spans, const Tensor& filters,
            double floor)
      : p{window.numel(), hop, spans.dim() == 2 ? spans.size(0) : 0} {
    STD_TORCH_CHECK(p.size >= 32 && (p.size & (p.size - 1)) == 0 && hop > 0 && p.bins > 0, "log_mel: windows of ",
                    p.size, " samples every ", hop, ", ", p.bins, " bins");
    p.window = numbers<float>(window, ScalarType::Float, p.size, "log_mel: window");
    p.turns = numbers<float>(turns, ScalarType::Float, 2 * p.size, "log_mel: turns");
    p.spans = numbers<int64_t>(spans, ScalarType::Long, 2 * p.bins, "log_mel: spans");
    p.floor = static_cast<float>(floor);
    int64_t weights = 0;
    for (int64_t bin = 0; bin < p.bins; ++bin) {
      const int64_t first = p.spans[2 * bin], count = p.spans[2 * bin + 1];
      STD_TORCH_CHECK(0 <= first && 0 <= count && first + count <= p.size / 2 + 1, "log_mel: filter ", bin);
      weights += count;
    }
    p.filters = numbers<float>(filters, ScalarType::Float, weights, "log_mel: filters");
  }

  // Frames first ... first + count - 1, kAtOnce at most.
  void operator()(const Recording& of, int64_t first, int64_t count, float* out) const {
    const int64_t begin = first * p.hop - p.size / 2, n = (count - 1) * p.hop + p.size;
    float* scratch = static_cast<float*>(workspace(p.scratch()));
    if (begin >= 0 && begin + n <= of.samples) {
      chosen().log_mel(p, of.audio + begin, count, out, scratch);
    } else {
      std::vector<float> samples(n);
      of.around(begin, n, samples.data());
      chosen().log_mel(p, samples.data(), count, out, scratch);
    }
  }

  // However many, shared among threads.
  void all(const Recording& of, int64_t first, int64_t count, float* out) const {
    torch::stable::parallel_for(0, (count + kAtOnce - 1) / kAtOnce, 2, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kAtOnce; i < std::min(end * kAtOnce, count); i += kAtOnce)
        (*this)(of, first + i, std::min(kAtOnce, count - i), out + i * p.bins);
    });
  }
};

// Frames less the mean of all frames so far, by their deviation.
struct RunningMVN {
  RunningMoments p;

  RunningMVN(int64_t bins, const Tensor& mean, double smallest, bool norm_vars)
      : p{bins, numbers<float>(mean, ScalarType::Float, bins, "running_mvn: mean"), static_cast<float>(smallest),
          norm_vars} {}

  // Of one stream; moments (3, bins) are those of the past, and with these frames afterwards; out may be x.
  void operator()(const float* x, int64_t frames, double* moments, float* out) const {
    chosen().running_mvn(p, x, frames, moments, moments + p.bins, moments + 2 * p.bins, out);
  }
};

}  // namespace bestow
