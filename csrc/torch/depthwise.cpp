// A depthwise convolution over time, and what it owes to its weights.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "layers.h"

namespace {

using bestow::ScalarType, bestow::Tensor, bestow::floats, bestow::numbers;

constexpr int64_t kRowsPerThread = 64;

// The tensor, dense.
Tensor frames_of(const Tensor& x, const char* what) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float, "depthwise: ", what,
                  " must be float32 (B, T, C)");
  return torch::stable::contiguous(x);
}

Tensor depthwise(Tensor x, Tensor taps, std::optional<Tensor> bias) {
  x = frames_of(x, "x");
  const int64_t batch = x.size(0), width = x.size(2), kernel = taps.dim() == 2 ? taps.size(0) : 0;
  STD_TORCH_CHECK(kernel >= 1 && x.size(1) >= kernel, "depthwise: a kernel of ", kernel, " over ", x.size(1),
                  " frames");
  const float* weight = numbers<const float>(taps, ScalarType::Float, kernel * width, "depthwise: taps");
  const float* shift =
      bias.has_value() ? numbers<const float>(*bias, ScalarType::Float, width, "depthwise: bias") : nullptr;
  const int64_t rows = x.size(1) - kernel + 1;
  Tensor out = torch::stable::new_empty(x, {batch, rows, width});
  const float* from = floats(x);
  float* to = static_cast<float*>(out.data_ptr());
  const bestow::Kernels& isa = bestow::chosen();
  torch::stable::parallel_for(0, batch * rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // a recording at a time
      const int64_t b = begin / rows, first = begin - b * rows, last = std::min(rows, first + end - begin);
      isa.convolve({width, kernel, from + b * x.size(1) * width, weight, shift, to + b * rows * width}, first, last);
      begin += last - first;
    }
  });
  return out;
}

Tensor depthwise_taps(Tensor x, Tensor gradient) {
  x = frames_of(x, "x"), gradient = frames_of(gradient, "gradient");
  const int64_t batch = x.size(0), width = x.size(2), rows = gradient.size(1), kernel = x.size(1) - rows + 1;
  STD_TORCH_CHECK(gradient.size(0) == batch && gradient.size(2) == width && kernel >= 1,
                  "depthwise_taps: a gradient of ", gradient.size(0), " x ", rows, " frames of ", gradient.size(2),
                  " beside ", batch, " x ", x.size(1), " of ", width);
  Tensor out = torch::stable::new_empty(x, {kernel, width});
  const bestow::TapGradients p{
      batch, rows, width, kernel, floats(x), floats(gradient), static_cast<float*>(out.data_ptr())};
  const bestow::Kernels& isa = bestow::chosen();
  torch::stable::parallel_for(0, p.units(), 1 + kRowsPerThread / (batch * rows + 1),
                              [&](int64_t begin, int64_t end) { isa.tap_gradients(p, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, T, C), taps (K, C), bias (C) -> (B, T - K + 1, C)
  m.def("depthwise(Tensor x, Tensor taps, Tensor? bias) -> Tensor");
  // x (B, T, C), gradient (B, T - K + 1, C) -> (K, C)
  m.def("depthwise_taps(Tensor x, Tensor gradient) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("depthwise", TORCH_BOX(&depthwise));
  m.impl("depthwise_taps", TORCH_BOX(&depthwise_taps));
}
