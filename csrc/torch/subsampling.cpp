// Sub-sampling by strided convolutions over time, all stages of a few streams in one call.

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

using namespace bestow;  // layers.h

constexpr int64_t kStride = 2;

// A convolution of stride 2: a frame is a product of `kernel` frames of its input, which lie one after the other.
struct Stage {
  Panels conv;  // inputs: frame by frame, channel by channel
  int64_t channels, past;

  Stage(Weights& from, int64_t channels_) : conv(from, 0), channels(channels_), past(conv.inputs / channels - kStride) {
    STD_TORCH_CHECK(past >= 0 && conv.inputs % channels == 0, "conv_subsampling: ", conv.inputs, " inputs of ",
                    channels, " channels");
  }
};

// Frames `first` ... first + count - 1 of a stream that has those from 0 to before `length`: others become 0.
void silence_outside(float* x, int64_t first, int64_t count, int64_t length, int64_t width) {
  const int64_t begin = std::min(std::max<int64_t>(-first, 0), count);
  const int64_t end = std::max(std::min(length - first, count), begin);
  std::fill(x, x + begin * width, 0.0f), std::fill(x + end * width, x + count * width, 0.0f);
}

// Input frames (B, T, C) of streams, the first of each of which makes output frame `start` (see causal_subsampling.py);
// past (B, n) holds the last inputs of all stages. bounds (B, 2): start, and input frames of a stream that has ended or
// -1. Per stage its weights and bias, then those of a linear layer and of a norm. Returns frames and past.
std::tuple<Tensor, Tensor> conv_subsampling(Tensor x, Tensor past, Tensor bounds, std::vector<Tensor> weights,
                                            int64_t count, double eps) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float && 1 <= count && count < 16,
                  "conv_subsampling: x");
  x = torch::stable::contiguous(x), past = torch::stable::contiguous(past);
  const int64_t batch = x.size(0), frames = x.size(1), factor = int64_t{1} << count;
  STD_TORCH_CHECK(frames % factor == 0 && x.size(2) > 0, "conv_subsampling: ", frames, " frames by ", factor);
  Weights from(weights);
  std::vector<Stage> stages;
  int64_t remembered = 0, most = 0;
  for (int64_t s = 0, n = frames; s < count; ++s, n /= kStride) {
    stages.emplace_back(from, s == 0 ? x.size(2) : stages.back().conv.outputs);
    remembered += stages.back().past * stages.back().channels;
    most = std::max(most, (stages.back().past + n) * stages.back().channels);
  }
  const int64_t width = stages.back().conv.outputs;
  const Panels linear(from, width);
  const Norm norm(from, linear.outputs, eps);
  STD_TORCH_CHECK(norm.weight != nullptr && from.done(), "conv_subsampling: weights are left over");
  STD_TORCH_CHECK(past.is_cpu() && past.scalar_type() == ScalarType::Float && past.dim() == 2 &&
                      past.size(0) == batch && past.size(1) == remembered,
                  "conv_subsampling: past must be float32 (", batch, ", ", remembered, ")");
  STD_TORCH_CHECK(bounds.is_cpu() && bounds.scalar_type() == ScalarType::Long && bounds.is_contiguous() &&
                      bounds.numel() == 2 * batch,
                  "conv_subsampling: bounds must be int64 (", batch, ", 2)");
  const auto* bound = static_cast<const int64_t*>(bounds.data_ptr());
  Tensor out = torch::stable::new_empty(x, {batch, frames / factor, linear.outputs});
  Tensor after = torch::stable::new_empty(past, {batch, remembered});

  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> input(most), output(most);
    for (int64_t b = begin; b < end; ++b) {
      const float *fresh = floats(x) + b * frames * x.size(2), *before = floats(past) + b * remembered;
      float* keep = static_cast<float*>(after.data_ptr()) + b * remembered;
      int64_t n = frames, apart = factor, length = bound[2 * b + 1];  // apart: frames of a stage per output frame
      for (const Stage& stage : stages) {
        const int64_t own = stage.past * stage.channels, all = own + n * stage.channels;
        std::memcpy(input.data(), before, own * sizeof(float));
        std::memcpy(&input[own], fresh, n * stage.channels * sizeof(float));
        std::memcpy(keep, &input[all - own], own * sizeof(float));
        before += own, keep += own, n /= kStride;
        output.resize(std::max<size_t>(output.size(), n * stage.conv.outputs));
        stage.conv(input.data(), n, output.data(), kStride * stage.channels);
        chosen().gelu(output.data(), n * stage.conv.outputs, output.data());
        apart /= kStride;
        const int64_t first = apart * bound[2 * b] - (apart - 1);
        if (length >= 0) length = length / kStride + 1;
        silence_outside(output.data(), first, n, length < 0 ? first + n : length, stage.conv.outputs);
        fresh = output.data();
      }
      float* to = static_cast<float*>(out.data_ptr()) + b * n * linear.outputs;
      linear(fresh, n, to);
      norm(to, n, to);
    }
  });
  return {out, after};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, T, C), past (B, n), bounds (B, 2) int64 -> (B, T / 2^count, D), (B, n)
  m.def(
      "conv_subsampling(Tensor x, Tensor past, Tensor bounds, Tensor[] weights, int count, float eps) -> (Tensor, "
      "Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("conv_subsampling", TORCH_BOX(&conv_subsampling)); }
