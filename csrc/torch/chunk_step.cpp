// A chunk of a few frames through all blocks of a conformer in one call: what encoders/chunk_step.py does block by
// block. Memory gives the weights once, in panels; the frames stay in the cache from one layer to the next.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using namespace bestow;  // layers.h

struct Panels {
  const float* weight;  // (N / 16, K, 16)
  const float* bias;    // (N) or null
  int64_t inputs, outputs;

  Panels(Weights& from, int64_t inputs_, int64_t outputs_ = 0) : weight(nullptr), bias(nullptr), inputs(inputs_) {
    const Tensor& w = from.next();
    STD_TORCH_CHECK(w.dim() == 3 && w.size(1) == inputs && w.size(2) == bestow::kPanel, "conformer_chunk: panels (",
                    w.size(0), ", ", w.size(1), ", ...) where ", inputs, " inputs belong");
    weight = floats(w), outputs = w.size(0) * bestow::kPanel;
    STD_TORCH_CHECK(outputs_ == 0 || outputs == outputs_, "conformer_chunk: ", outputs, " outputs, not ", outputs_);
    bias = from.vector(outputs, true);
  }

  void operator()(const float* x, int64_t rows, float* out) const {
    const bestow::PanelLinear p{rows, inputs, outputs, x, weight, bias, out};
    const bestow::Kernels& isa = chosen();
    torch::stable::parallel_for(0, p.units(), 1 + bestow::outputs_per_thread(inputs, rows) / bestow::kPanel,
                                [&](int64_t begin, int64_t end) { isa.panel_linear(p, begin, end); });
  }
};

struct FeedForward {
  Norm norm;
  Panels up, down;

  FeedForward(Weights& from, int64_t width, double eps)
      : norm(from, width, eps), up(from, width), down(from, up.outputs, width) {}

  void add(float* x, int64_t rows, std::vector<float>& normed, std::vector<float>& inner) const {
    inner.resize(rows * up.outputs);
    norm(x, rows, normed.data());
    up(normed.data(), rows, inner.data());
    chosen().gate(inner.data(), inner.data(), rows * up.outputs, inner.data());
    down(inner.data(), rows, normed.data());
    add_to(x, normed.data(), rows * norm.width, 0.5f);
  }
};

// Per block: norm and feed-forward; norm, query-key-value, both biases, relative positions, output; norm, the first
// pointwise layer, taps and their bias, norm, the second pointwise layer; norm and feed-forward; norm. Biases follow
// their weights; an empty tensor stands for none. Returns the frames, and the last inputs of all convolutions.
std::tuple<Tensor, Tensor> conformer_chunk(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> windows,
                                           std::vector<Tensor> past, std::optional<Tensor> mask, int64_t heads,
                                           double eps, double scale) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float && x.numel() > 0 && heads > 0,
                  "conformer_chunk: x");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), chunk = x.size(1), width = x.size(2), rows = batch * chunk, head = width / heads;
  STD_TORCH_CHECK(!windows.empty() && windows.size() == past.size() && head * heads == width,
                  "conformer_chunk: ", windows.size(), " windows, ", past.size(), " pasts, ", heads, " heads");
  const int64_t frames = windows[0].size(1), before = past[0].size(1), blocks = windows.size();
  STD_TORCH_CHECK(!mask || (mask->is_cpu() && mask->is_contiguous() && mask->numel() == batch * frames &&
                            mask->scalar_type() == ScalarType::Float),
                  "conformer_chunk: the mask must be float32 (", batch, ", ", frames, ")");
  Tensor out = torch::stable::new_empty(x, {batch, chunk, width});
  Tensor kept = torch::stable::new_empty(x, {blocks, batch, before, width});
  float *y = static_cast<float*>(out.data_ptr()), *keep = static_cast<float*>(kept.data_ptr());
  std::memcpy(y, x.data_ptr(), rows * width * sizeof(float));
  std::vector<float> normed(rows * width), wide(rows * 3 * width), inner, convolved((before + chunk) * width);
  const bestow::Kernels& isa = chosen();
  Weights from(weights);
  for (int64_t block = 0; block < blocks; ++block) {
    const FeedForward first(from, width, eps);
    first.add(y, rows, normed, inner);

    const Norm norm(from, width, eps);
    const Panels qkv(from, width, 3 * width);
    const float *bias_content = from.vector(width), *bias_place = from.vector(width);
    const float* relative = from.vector((frames + chunk - 1) * width);
    const Panels joined(from, width, width);
    const Tensor& window = windows[block];
    STD_TORCH_CHECK(window.is_cpu() && window.scalar_type() == ScalarType::Float && window.dim() == 3 &&
                        window.size(0) == batch && window.size(1) == frames && frames >= chunk &&
                        window.size(2) == 2 * width && window.stride(2) == 1,
                    "conformer_chunk: the window of block ", block);
    float* memory = static_cast<float*>(window.data_ptr());
    norm(y, rows, normed.data());
    qkv(normed.data(), rows, wide.data());
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(memory + row / chunk * window.stride(0) + (frames - chunk + row % chunk) * window.stride(1),
                  &wide[row * 3 * width + width], 2 * width * sizeof(float));
    bestow::ChunkAttention p{heads, chunk, frames, head};
    p.qkv = wide.data(), p.window = memory, p.window_batch = window.stride(0), p.window_frame = window.stride(1);
    p.bias_content = bias_content, p.bias_place = bias_place, p.relative = relative;
    p.mask = mask ? floats(*mask) : nullptr, p.scale = static_cast<float>(scale), p.out = normed.data();
    torch::stable::parallel_for(0, batch * heads, 2, [&](int64_t begin, int64_t end) {
      isa.chunk_attention(p, begin, end, static_cast<float*>(workspace(p.scratch())));
    });
    joined(normed.data(), rows, wide.data());
    add_to(y, wide.data(), rows * width);

    const Norm conv_norm(from, width, eps);
    const Panels into(from, width, 2 * width);
    const Tensor& taps = from.next();
    STD_TORCH_CHECK(taps.dim() == 2 && taps.size(0) == before + 1 && taps.size(1) == width, "conformer_chunk: taps");
    const float* taps_bias = from.vector(width, true);
    const Norm inner_norm(from, width, eps);
    const Panels outward(from, width, width);
    const Tensor& earlier = past[block];
    STD_TORCH_CHECK(earlier.is_cpu() && earlier.scalar_type() == ScalarType::Float && earlier.is_contiguous() &&
                        earlier.dim() == 3 && earlier.size(0) == batch && earlier.size(1) == before &&
                        earlier.size(2) == width,
                    "conformer_chunk: the past of block ", block);
    conv_norm(y, rows, normed.data());
    into(normed.data(), rows, wide.data());
    for (int64_t b = 0; b < batch; ++b) {
      std::memcpy(convolved.data(), floats(earlier) + b * before * width, before * width * sizeof(float));
      for (int64_t i = 0; i < chunk; ++i) {
        const float* both = &wide[(b * chunk + i) * 2 * width];
        isa.gate(both, both + width, width, &convolved[(before + i) * width]);
      }
      isa.convolve({width, before + 1, convolved.data(), floats(taps), taps_bias, &normed[b * chunk * width]}, 0,
                   chunk);
      std::memcpy(keep, &convolved[chunk * width], before * width * sizeof(float));
      keep += before * width;
    }
    inner_norm(normed.data(), rows, normed.data());
    isa.gate(normed.data(), normed.data(), rows * width, normed.data());
    outward(normed.data(), rows, wide.data());
    add_to(y, wide.data(), rows * width);

    const FeedForward second(from, width, eps);
    second.add(y, rows, normed, inner);
    const Norm last(from, width, eps);
    last(y, rows, y);
  }
  STD_TORCH_CHECK(from.done(), "conformer_chunk: weights are left over");
  return {out, kept};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, c, D); windows (B, W, 2 D) per block, the last c frames of which are written; past (B, kernel - 1, D) per
  // block; mask (B, W) or none -> (B, c, D), (blocks, B, kernel - 1, D)
  m.def(
      "conformer_chunk(Tensor x, Tensor[] weights, Tensor(a!)[] windows, Tensor[] past, Tensor? mask, int heads, "
      "float eps, float scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("conformer_chunk", TORCH_BOX(&conformer_chunk)); }
