// A chunk of a few frames through all blocks of a conformer in one call: what encoders/chunk_step.py does block by
// block. Memory gives the weights once, in panels; the frames stay in the cache from one layer to the next.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using namespace bestow;  // layers.h

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

// What one stream remembers, of all blocks.
struct Stream {
  float* window;      // (blocks, n, 2 D) keys and values, `block` apart
  int64_t block;      // elements
  int64_t frames;     // n
  int64_t seen;       // how many of them are attended to
  const float* past;  // (blocks, kernel - 1, D) inputs of the convolutions, before this chunk
  float* kept;        // and after it
};

// The chunks of some streams on their way through the blocks.
class Chunks {
 public:
  Chunks(const Stream* streams, int64_t count, int64_t chunk, int64_t width, int64_t heads, int64_t size,
         int64_t before)
      : streams_(streams),
        count_(count),
        chunk_(chunk),
        width_(width),
        heads_(heads),
        size_(size),
        before_(before),
        windows_(count),
        normed_(count * chunk * width),
        wide_(count * chunk * 3 * width),
        convolved_((before + chunk) * width) {}

  void pass(const Block& block, int64_t number, float scale, float* y) {
    block.first.add(y, rows(), normed_, inner_);
    attend(block.attention, number, scale, y);
    convolve(block.convolution, number, y);
    block.second.add(y, rows(), normed_, inner_);
    block.last(y, rows(), y);
  }

 private:
  int64_t rows() const { return count_ * chunk_; }

  void attend(const Attention& layer, int64_t number, float scale, float* y) {
    layer.norm(y, rows(), normed_.data());
    layer.qkv(normed_.data(), rows(), wide_.data());
    for (int64_t b = 0; b < count_; ++b) {
      const Stream& stream = streams_[b];
      float* window = stream.window + number * stream.block;
      windows_[b] = {window, stream.frames, stream.seen};
      for (int64_t i = 0; i < chunk_; ++i)
        std::memcpy(window + (stream.frames - chunk_ + i) * 2 * width_, &wide_[((b * chunk_ + i) * 3 + 1) * width_],
                    2 * width_ * sizeof(float));
    }
    bestow::ChunkAttention p{heads_, chunk_, size_, width_ / heads_};
    p.qkv = wide_.data(), p.windows = windows_.data();
    p.bias_content = layer.bias_content, p.bias_place = layer.bias_place, p.relative = layer.relative;
    p.scale = scale, p.out = normed_.data();
    torch::stable::parallel_for(0, count_ * heads_, 2, [&](int64_t begin, int64_t end) {
      chosen().chunk_attention(p, begin, end, static_cast<float*>(workspace(p.scratch())));
    });
    layer.joined(normed_.data(), rows(), wide_.data());
    add_to(y, wide_.data(), rows() * width_);
  }

  void convolve(const Convolution& layer, int64_t number, float* y) {
    const bestow::Kernels& isa = chosen();
    layer.norm(y, rows(), normed_.data());
    layer.into(normed_.data(), rows(), wide_.data());
    for (int64_t b = 0; b < count_; ++b) {
      const int64_t past = number * before_ * width_;
      std::memcpy(convolved_.data(), streams_[b].past + past, before_ * width_ * sizeof(float));
      for (int64_t i = 0; i < chunk_; ++i) {
        const float* both = &wide_[(b * chunk_ + i) * 2 * width_];
        isa.gate(both, both + width_, width_, &convolved_[(before_ + i) * width_]);
      }
      float* out = &normed_[b * chunk_ * width_];
      isa.convolve({width_, before_ + 1, convolved_.data(), layer.taps, layer.bias, out}, 0, chunk_);
      std::memcpy(streams_[b].kept + past, &convolved_[chunk_ * width_], before_ * width_ * sizeof(float));
    }
    layer.inner(normed_.data(), rows(), normed_.data());
    isa.gate(normed_.data(), normed_.data(), rows() * width_, normed_.data());
    layer.outward(normed_.data(), rows(), wide_.data());
    add_to(y, wide_.data(), rows() * width_);
  }

  const Stream* streams_;
  const int64_t count_, chunk_, width_, heads_, size_, before_;
  std::vector<bestow::ChunkWindow> windows_;
  std::vector<float> normed_, wide_, inner_, convolved_;
};

// Rows that pass all blocks together: enough of them to be worth reading the weights for, few enough for the caches.
// Beyond twice as many, threads take streams of their own; below, they share each layer.
constexpr int64_t kRowsTogether = 64;

// x (B, blocks, ...) of one stream among many: float32, the last two dimensions dense.
float* of_stream(const Tensor& x, int64_t blocks, int64_t width, const char* what) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 3 && x.size(0) == blocks &&
                      x.size(2) == width && x.stride(2) == 1 && (x.size(1) <= 1 || x.stride(1) == width),
                  "conformer_chunk: ", what, " must be float32 (", blocks, ", ..., ", width, ")");
  return static_cast<float*>(x.data_ptr());
}

// The weights are those of all blocks in order, see Block.
Tensor conformer_chunk(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> windows, Tensor seen,
                       std::vector<Tensor> past, std::vector<Tensor> after, int64_t heads, int64_t size, double eps,
                       double scale) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.scalar_type() == ScalarType::Float && x.numel() > 0 && heads > 0,
                  "conformer_chunk: x");
  x = torch::stable::contiguous(x);
  const int64_t batch = x.size(0), chunk = x.size(1), width = x.size(2), head = width / heads;
  const auto one_each = [&](const std::vector<Tensor>& list) { return list.size() == static_cast<size_t>(batch); };
  STD_TORCH_CHECK(one_each(windows) && one_each(past) && one_each(after) && head * heads == width,
                  "conformer_chunk: ", windows.size(), " windows, ", past.size(), " pasts, ", heads, " heads");
  STD_TORCH_CHECK(
      seen.is_cpu() && seen.scalar_type() == ScalarType::Long && seen.is_contiguous() && seen.numel() == batch,
      "conformer_chunk: seen must be int64 (", batch, ")");
  STD_TORCH_CHECK(past[0].dim() == 3, "conformer_chunk: past");
  const int64_t blocks = past[0].size(0), before = past[0].size(1);
  std::vector<Stream> streams;
  for (int64_t b = 0; b < batch; ++b) {
    Stream stream{of_stream(windows[b], blocks, 2 * width, "a window"),
                  windows[b].stride(0),
                  windows[b].size(1),
                  static_cast<const int64_t*>(seen.data_ptr())[b],
                  of_stream(past[b], blocks, width, "a past"),
                  of_stream(after[b], blocks, width, "an after")};
    STD_TORCH_CHECK(chunk <= stream.frames && stream.frames <= size && 1 <= stream.seen && stream.seen <= stream.frames,
                    "conformer_chunk: ", stream.seen, " of ", stream.frames, " frames in windows of ", size);
    STD_TORCH_CHECK(
        past[b].size(1) == before && after[b].size(1) == before && past[b].is_contiguous() && after[b].is_contiguous(),
        "conformer_chunk: the past of stream ", b);
    streams.push_back(stream);
  }
  std::vector<Block> layers;
  Weights from(weights);
  for (int64_t block = 0; block < blocks; ++block) layers.emplace_back(from, width, size + chunk - 1, before + 1, eps);
  STD_TORCH_CHECK(from.done(), "conformer_chunk: weights are left over");
  Tensor out = torch::stable::new_empty(x, {batch, chunk, width});

  const auto pass = [&](int64_t begin, int64_t end) {
    Chunks chunks(streams.data() + begin, end - begin, chunk, width, heads, size, before);
    float* y = static_cast<float*>(out.data_ptr()) + begin * chunk * width;
    std::memcpy(y, floats(x) + begin * chunk * width, (end - begin) * chunk * width * sizeof(float));
    for (int64_t block = 0; block < blocks; ++block) chunks.pass(layers[block], block, static_cast<float>(scale), y);
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
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (B, c, D); of each of B streams a window (blocks, n, 2 D), the last c of whose n frames are written, and a past
  // (blocks, kernel - 1, D) before and after; seen (B) -> (B, c, D)
  m.def(
      "conformer_chunk(Tensor x, Tensor[] weights, Tensor(a!)[] windows, Tensor seen, Tensor[] past, "
      "Tensor(b!)[] after, int heads, int size, float eps, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) { m.impl("conformer_chunk", TORCH_BOX(&conformer_chunk)); }
