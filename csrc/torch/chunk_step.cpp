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

struct Attention {
  Norm norm;
  Panels qkv;
  const float *bias_content, *bias_place, *relative;
  Panels joined;

  Attention(Weights& from, int64_t width, int64_t places, double eps)
      : norm(from, width, eps),
        qkv(from, width, 3 * width),
        bias_content(from.vector(width)),
        bias_place(from.vector(width)),
        relative(from.vector(places * width)),
        joined(from, width, width) {}
};

struct Convolution {
  Norm norm;
  Panels into;
  const float *taps, *bias;
  Norm inner;
  Panels outward;

  Convolution(Weights& from, int64_t width, int64_t kernel, double eps)
      : norm(from, width, eps),
        into(from, width, 2 * width),
        taps(from.vector(kernel * width)),
        bias(from.vector(width, true)),
        inner(from, width, eps),
        outward(from, width, width) {}
};

// norm and feed-forward; norm, query-key-value, both biases, relative positions, output; norm, the first pointwise
// layer, taps and their bias, norm, the second pointwise layer; norm and feed-forward; norm. Biases follow their
// weights; an empty tensor stands for none.
struct Block {
  FeedForward first;
  Attention attention;
  Convolution convolution;
  FeedForward second;
  Norm last;

  Block(Weights& from, int64_t width, int64_t places, int64_t kernel, double eps)
      : first(from, width, eps),
        attention(from, width, places, eps),
        convolution(from, width, kernel, eps),
        second(from, width, eps),
        last(from, width, eps) {}
};

// What a block remembers of its streams.
struct Memory {
  float* window;  // keys and values (B, W, 2 D)
  int64_t stream, frame;
  const float* past;  // inputs of the convolution (B, kernel - 1, D), before this chunk
  float* kept;        // and after it
};

// The chunks of some streams on their way through the blocks.
class Chunks {
 public:
  Chunks(int64_t streams, int64_t chunk, int64_t width, int64_t heads, int64_t frames, int64_t before)
      : streams_(streams),
        chunk_(chunk),
        width_(width),
        heads_(heads),
        frames_(frames),
        before_(before),
        normed_(streams * chunk * width),
        wide_(streams * chunk * 3 * width),
        convolved_((before + chunk) * width) {}

  void pass(const Block& block, const Memory& memory, const float* mask, float scale, float* y) {
    block.first.add(y, rows(), normed_, inner_);
    attend(block.attention, memory, mask, scale, y);
    convolve(block.convolution, memory, y);
    block.second.add(y, rows(), normed_, inner_);
    block.last(y, rows(), y);
  }

 private:
  int64_t rows() const { return streams_ * chunk_; }

  void attend(const Attention& layer, const Memory& memory, const float* mask, float scale, float* y) {
    layer.norm(y, rows(), normed_.data());
    layer.qkv(normed_.data(), rows(), wide_.data());
    for (int64_t row = 0; row < rows(); ++row)
      std::memcpy(memory.window + row / chunk_ * memory.stream + (frames_ - chunk_ + row % chunk_) * memory.frame,
                  &wide_[row * 3 * width_ + width_], 2 * width_ * sizeof(float));
    bestow::ChunkAttention p{heads_, chunk_, frames_, width_ / heads_};
    p.qkv = wide_.data(), p.window = memory.window, p.window_batch = memory.stream, p.window_frame = memory.frame;
    p.bias_content = layer.bias_content, p.bias_place = layer.bias_place, p.relative = layer.relative;
    p.mask = mask, p.scale = scale, p.out = normed_.data();
    torch::stable::parallel_for(0, streams_ * heads_, 2, [&](int64_t begin, int64_t end) {
      chosen().chunk_attention(p, begin, end, static_cast<float*>(workspace(p.scratch())));
    });
    layer.joined(normed_.data(), rows(), wide_.data());
    add_to(y, wide_.data(), rows() * width_);
  }

  void convolve(const Convolution& layer, const Memory& memory, float* y) {
    const bestow::Kernels& isa = chosen();
    layer.norm(y, rows(), normed_.data());
    layer.into(normed_.data(), rows(), wide_.data());
    for (int64_t b = 0; b < streams_; ++b) {
      std::memcpy(convolved_.data(), memory.past + b * before_ * width_, before_ * width_ * sizeof(float));
      for (int64_t i = 0; i < chunk_; ++i) {
        const float* both = &wide_[(b * chunk_ + i) * 2 * width_];
        isa.gate(both, both + width_, width_, &convolved_[(before_ + i) * width_]);
      }
      float* out = &normed_[b * chunk_ * width_];
      isa.convolve({width_, before_ + 1, convolved_.data(), layer.taps, layer.bias, out}, 0, chunk_);
      std::memcpy(memory.kept + b * before_ * width_, &convolved_[chunk_ * width_], before_ * width_ * sizeof(float));
    }
    layer.inner(normed_.data(), rows(), normed_.data());
    isa.gate(normed_.data(), normed_.data(), rows() * width_, normed_.data());
    layer.outward(normed_.data(), rows(), wide_.data());
    add_to(y, wide_.data(), rows() * width_);
  }

  const int64_t streams_, chunk_, width_, heads_, frames_, before_;
  std::vector<float> normed_, wide_, inner_, convolved_;
};

// Rows that pass all blocks together: enough of them to be worth reading the weights for, few enough for the caches.
// Beyond twice as many, threads take streams of their own; below, they share each layer.
constexpr int64_t kRowsTogether = 64;

// The weights are those of all blocks in order, see Block. Returns the frames, and the last inputs of all convolutions.
std::tuple<Tensor, Tensor> conformer_chunk(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> windows,
                                           std::vector<Tensor> past, std::optional<Tensor> mask, int64_t heads,
                                           double eps, double scale) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float && x.numel() > 0 && heads > 0,
                  "conformer_chunk: x");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), chunk = x.size(1), width = x.size(2), head = width / heads;
  STD_TORCH_CHECK(!windows.empty() && windows.size() == past.size() && head * heads == width,
                  "conformer_chunk: ", windows.size(), " windows, ", past.size(), " pasts, ", heads, " heads");
  STD_TORCH_CHECK(windows[0].dim() == 3 && past[0].dim() == 3, "conformer_chunk: windows or pasts");
  const int64_t frames = windows[0].size(1), before = past[0].size(1), blocks = windows.size();
  STD_TORCH_CHECK(!mask || (mask->is_cpu() && mask->is_contiguous() && mask->numel() == batch * frames &&
                            mask->scalar_type() == ScalarType::Float),
                  "conformer_chunk: the mask must be float32 (", batch, ", ", frames, ")");
  Tensor out = torch::stable::new_empty(x, {batch, chunk, width});
  Tensor kept = torch::stable::new_empty(x, {blocks, batch, before, width});
  std::vector<Block> layers;
  std::vector<Memory> memories;
  Weights from(weights);
  for (int64_t block = 0; block < blocks; ++block) {
    layers.emplace_back(from, width, frames + chunk - 1, before + 1, eps);
    const Tensor &window = windows[block], &earlier = past[block];
    STD_TORCH_CHECK(window.is_cpu() && window.scalar_type() == ScalarType::Float && window.dim() == 3 &&
                        window.size(0) == batch && window.size(1) == frames && frames >= chunk &&
                        window.size(2) == 2 * width && window.stride(2) == 1,
                    "conformer_chunk: the window of block ", block);
    STD_TORCH_CHECK(earlier.is_cpu() && earlier.scalar_type() == ScalarType::Float && earlier.is_contiguous() &&
                        earlier.dim() == 3 && earlier.size(0) == batch && earlier.size(1) == before &&
                        earlier.size(2) == width,
                    "conformer_chunk: the past of block ", block);
    float* keep = static_cast<float*>(kept.data_ptr()) + block * batch * before * width;
    memories.push_back(
        {static_cast<float*>(window.data_ptr()), window.stride(0), window.stride(1), floats(earlier), keep});
  }
  STD_TORCH_CHECK(from.done(), "conformer_chunk: weights are left over");

  const auto pass = [&](int64_t begin, int64_t end) {
    Chunks chunks(end - begin, chunk, width, heads, frames, before);
    float* y = static_cast<float*>(out.data_ptr()) + begin * chunk * width;
    std::memcpy(y, floats(x) + begin * chunk * width, (end - begin) * chunk * width * sizeof(float));
    for (int64_t block = 0; block < blocks; ++block) {
      Memory memory = memories[block];
      memory.window += begin * memory.stream;
      memory.past += begin * before * width, memory.kept += begin * before * width;
      chunks.pass(layers[block], memory, mask ? floats(*mask) + begin * frames : nullptr, static_cast<float>(scale), y);
    }
  };
  const int64_t together = (kRowsTogether + chunk - 1) / chunk;
  const auto in_groups = [&](int64_t begin, int64_t end) {
    const int64_t streams = end - begin, groups = streams < 2 * together ? 1 : streams / together;
    for (int64_t group = 0; group < groups; ++group)
      pass(begin + group * streams / groups, begin + (group + 1) * streams / groups);
  };
  if (batch < 2 * together) {
    in_groups(0, batch);
  } else {
    torch::stable::parallel_for(0, batch, together, in_groups);
  }
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
