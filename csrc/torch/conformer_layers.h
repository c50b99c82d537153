// The layers of a conformer over the frames of several streams, block after block: what encoders/chunk_step.py does,
// with weights in panels. Memory gives them once; the frames stay in the cache from one layer to the next.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bestow/cpu.h"
#include "cpu_calls.h"
#include "layers.h"

namespace bestow::conformer {

struct FeedForward {
  Norm norm;
  Panels up, down;

  FeedForward(Weights& from, int64_t width, double eps)
      : norm(from, width, eps), up(from, width), down(from, up.outputs, width) {}

  void add(float* x, int64_t rows, float* normed, Room& room) const {
    float* inner = room.of(rows * up.outputs);
    norm(x, rows, normed);
    up(normed, rows, inner);
    chosen().gate(inner, inner, rows * up.outputs, inner);
    down(inner, rows, normed);
    add_to(x, normed, rows * norm.width, 0.5f);
  }
};

// What a block does to each frame alone, until frames look at each other.
struct Beginning {
  FeedForward first;
  Norm norm;
  Panels qkv;

  Beginning(Weights& from, int64_t width, double eps)
      : first(from, width, eps), norm(from, width, eps), qkv(from, width, 3 * width) {}

  // x (rows, D) goes through the feed-forward; its queries, keys and values (rows, 3 D).
  void operator()(float* x, int64_t rows, float* normed, float* heads, Room& room) const {
    first.add(x, rows, normed, room);
    norm(x, rows, normed);
    qkv(normed, rows, heads);
  }
};

struct Attention {
  const float *bias_content, *bias_place, *relative;
  Panels joined;

  Attention(Weights& from, int64_t width, int64_t places)
      : bias_content(from.vector(width)),
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
  Beginning beginning;
  Attention attention;
  Convolution convolution;
  FeedForward second;
  Norm last;

  Block(Weights& from, int64_t width, int64_t places, int64_t kernel, double eps)
      : beginning(from, width, eps),
        attention(from, width, places),
        convolution(from, width, kernel, eps),
        second(from, width, eps),
        last(from, width, eps) {}
};

// One stream: its chunk, and what it remembers of all blocks.
struct Stream {
  int64_t row, chunk;  // its rows among all
  int64_t wanted;      // the first of these, whose frames are asked for
  float* window;       // (blocks, n, 2 D) keys and values, `block` apart; or null: n is the chunk, nobody else asks
  int64_t block;       // elements
  int64_t frames;      // n
  int64_t seen;        // how many of them are attended to
  const float* past;   // (blocks, kernel - 1, D) inputs of the convolutions, before this chunk; or null for silence
  float* kept;         // and after it, or null
};

struct Sizes {
  int64_t width, heads;
  int64_t chunk, window;  // the longest
  int64_t places;         // relative positions in a block's table
  int64_t before;         // frames that a convolution looks back
};

// What chunks need on their way; a thread keeps it, since fresh pages cost more than some layers.
struct Rooms {
  Room rows, normed, wide, inner, convolved, keys;
};

// The chunks of some streams on their way through the blocks.
class Chunks {
 public:
  Chunks(const std::vector<Stream>& streams, const Sizes& sizes, Rooms& rooms)
      : streams_(streams), sizes_(sizes), parts_(streams.size()), windows_(streams.size()), inner_(rooms.inner) {
    const int64_t width = sizes.width;
    for (size_t b = 0; b < streams.size(); ++b) parts_[b] = {rows_, streams[b].chunk}, rows_ += streams[b].chunk;
    normed_ = rooms.normed.of(rows_ * width), wide_ = rooms.wide.of(rows_ * 3 * width);
    convolved_ = rooms.convolved.of((sizes.before + sizes.chunk) * width);
    float* keys = rooms.keys.of(rows_ * 2 * width);  // of one block at a time
    for (size_t b = 0; b < streams.size(); ++b)
      homes_.push_back(streams[b].window != nullptr ? streams[b].window : keys + parts_[b].row * 2 * width);
  }

  // Where the queries, keys and values of frames belong that have begun the first block already.
  float* begun() { return wide_; }

  void begin(const Block& block, float* y) { block.beginning(y, rows_, normed_, wide_, inner_); }

  // What follows the beginning of a block.
  void finish(const Block& block, int64_t number, float scale, float* y) {
    const int64_t width = sizes_.width;
    keep_keys(number, wide_ + width, 3 * width);
    look(block.attention, number, scale, 3 * width, y);
    go_on(block, number, y);
  }

  // From the last block only the frames that are wanted come out, one stream's behind the other's: of the others it
  // needs keys and values alone.
  void begin_and_finish_wanted(const Block& block, int64_t number, float scale, float* y) {
    const int64_t width = sizes_.width;
    if (everything_wanted()) return begin(block, y), finish(block, number, scale, y);
    block.beginning.first.add(y, rows_, normed_, inner_);
    block.beginning.norm(y, rows_, normed_);
    block.beginning.qkv.part(width, 2 * width)(normed_, rows_, wide_);
    keep_keys(number, wide_, 2 * width);
    drop_unwanted(y, normed_, width);
    block.beginning.qkv.part(0, width)(normed_, rows_, wide_);
    look(block.attention, number, scale, width, y);
    go_on(block, number, y);
  }

  // The same where the last block is the first one, and begun.
  void finish_wanted(const Block& block, int64_t number, float scale, float* y) {
    const int64_t row = 3 * sizes_.width;
    keep_keys(number, wide_ + sizes_.width, row);
    drop_unwanted(y, wide_, row);
    look(block.attention, number, scale, row, y);
    go_on(block, number, y);
  }

 private:
  struct Part {  // rows of a stream among those that go on
    int64_t row, count;
  };

  bool everything_wanted() const {
    return std::all_of(streams_.begin(), streams_.end(), [](const Stream& s) { return s.wanted == s.chunk; });
  }

  // Only rows that are wanted go on, of y (rows, D) and of x (rows, `row`).
  void drop_unwanted(float* y, float* x, int64_t row) {
    const int64_t width = sizes_.width;
    rows_ = 0;
    for (size_t b = 0; b < streams_.size(); ++b) {
      const Part from = parts_[b], to = parts_[b] = {rows_, streams_[b].wanted};
      std::memmove(y + to.row * width, y + from.row * width, to.count * width * sizeof(float));
      std::memmove(x + to.row * row, x + from.row * row, to.count * row * sizeof(float));
      rows_ += to.count;
    }
  }

  // What follows the attention.
  void go_on(const Block& block, int64_t number, float* y) {
    convolve(block.convolution, number, y);
    block.second.add(y, rows_, normed_, inner_);
    block.last(y, rows_, y);
  }

  // Keys and values of the chunks, rows `row` apart, go to the ends of their windows.
  void keep_keys(int64_t number, const float* keys, int64_t row) {
    const int64_t width = 2 * sizes_.width;
    for (size_t b = 0; b < streams_.size(); ++b) {
      const Stream& stream = streams_[b];
      float* to = homes_[b] + number * stream.block + (stream.frames - stream.chunk) * width;
      for (int64_t i = 0; i < stream.chunk; ++i)
        std::memcpy(to + i * width, keys + (parts_[b].row + i) * row, width * sizeof(float));
    }
  }

  // The queries, `row` apart in wide_, look at their windows.
  void look(const Attention& layer, int64_t number, float scale, int64_t row, float* y) {
    const int64_t width = sizes_.width;
    for (size_t b = 0; b < streams_.size(); ++b) {
      const Stream& stream = streams_[b];
      windows_[b] = {parts_[b].row, parts_[b].count, homes_[b] + number * stream.block, stream.frames - stream.chunk,
                     stream.seen};
    }
    ChunkAttention p{sizes_.heads, width / sizes_.heads, sizes_.chunk, sizes_.window, sizes_.places};
    p.queries = wide_, p.query_row = row, p.windows = windows_.data();
    p.bias_content = layer.bias_content, p.bias_place = layer.bias_place, p.relative = layer.relative;
    p.scale = scale, p.out = normed_;
    torch::stable::parallel_for(0, streams_.size() * sizes_.heads, 2, [&](int64_t begin, int64_t end) {
      chosen().chunk_attention(p, begin, end, static_cast<float*>(workspace(p.scratch())));
    });
    layer.joined(normed_, rows_, wide_);
    add_to(y, wide_, rows_ * width);
  }

  void convolve(const Convolution& layer, int64_t number, float* y) {
    const Kernels& isa = chosen();
    const int64_t width = sizes_.width, past = sizes_.before * width;
    layer.norm(y, rows_, normed_);
    layer.into(normed_, rows_, wide_);
    for (size_t b = 0; b < streams_.size(); ++b) {
      const Stream& stream = streams_[b];
      if (stream.past != nullptr)
        std::memcpy(convolved_, stream.past + number * past, past * sizeof(float));
      else
        std::fill(convolved_, convolved_ + past, 0.0f);
      const Part part = parts_[b];
      for (int64_t i = 0; i < part.count; ++i) {
        const float* both = wide_ + (part.row + i) * 2 * width;
        isa.gate(both, both + width, width, convolved_ + past + i * width);
      }
      float* out = normed_ + part.row * width;
      isa.convolve({width, sizes_.before + 1, convolved_, layer.taps, layer.bias, out}, 0, part.count);
      if (stream.kept != nullptr)
        std::memcpy(stream.kept + number * past, convolved_ + part.count * width, past * sizeof(float));
    }
    layer.inner(normed_, rows_, normed_);
    isa.gate(normed_, normed_, rows_ * width, normed_);
    layer.outward(normed_, rows_, wide_);
    add_to(y, wide_, rows_ * width);
  }

  const std::vector<Stream>& streams_;
  const Sizes sizes_;
  int64_t rows_ = 0;
  std::vector<Part> parts_;
  std::vector<ChunkWindow> windows_;
  std::vector<float*> homes_;  // the windows
  float *normed_, *wide_, *convolved_;
  Room& inner_;
};

}  // namespace bestow::conformer
