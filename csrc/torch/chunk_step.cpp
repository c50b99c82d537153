// A chunk of a few frames, or a whole recording, through all blocks of a conformer in one call: what
// encoders/chunk_step.py does block by block. Memory gives the weights once, in panels; the frames stay in the cache
// from one layer to the next.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <numeric>
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
    bestow::ChunkAttention p{sizes_.heads, width / sizes_.heads, sizes_.chunk, sizes_.window, sizes_.places};
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
    const bestow::Kernels& isa = chosen();
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
  std::vector<bestow::ChunkWindow> windows_;
  std::vector<float*> homes_;  // the windows
  float *normed_, *wide_, *convolved_;
  Room& inner_;
};

// Rows that pass all blocks together on one thread: enough of them to be worth reading the weights for, few enough for
// the caches. Where a thread would have fewer of its own than kFewestRows, threads share each layer.
constexpr int64_t kRowsTogether = 64, kFewestRows = 32;

// Streams in groups of about as many rows each, one list of groups for each thread.
std::vector<std::vector<std::vector<int64_t>>> groups_of(const std::vector<Stream>& streams, int64_t threads) {
  std::vector<int64_t> costs;
  for (const Stream& stream : streams) costs.push_back(stream.chunk);
  std::vector<std::vector<std::vector<int64_t>>> found;
  for (const std::vector<int64_t>& share : shared_out(costs, threads)) {
    int64_t rows = 0, done = 0;
    for (int64_t b : share) rows += costs[b];
    const int64_t groups = std::max<int64_t>((rows + kRowsTogether - 1) / kRowsTogether, 1);
    found.emplace_back(groups);
    for (int64_t b : share) {
      found.back()[std::min((done + costs[b] / 2) * groups / rows, groups - 1)].push_back(b);
      done += costs[b];
    }
  }
  return found;
}

// x (B, blocks, ...) of one stream among many: float32, the last two dimensions dense.
float* of_stream(const Tensor& x, int64_t blocks, int64_t width, const char* what) {
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == ScalarType::Float && x.dim() == 3 && x.size(0) == blocks &&
                      x.size(2) == width && x.stride(2) == 1 && (x.size(1) <= 1 || x.stride(1) == width),
                  "conformer_chunk: ", what, " must be float32 (", blocks, ", ..., ", width, ")");
  return static_cast<float*>(x.data_ptr());
}

// x (R, D) of streams, one after the other, takes all of them through the blocks; relative positions are those of
// windows of `sizes.window` frames. Of frames that have begun the first block, x (R, 4 D) has the queries, keys and
// values, too. Returns the wanted frames of each, one stream's behind the other's.
Tensor through_all_blocks(const Tensor& x, const std::vector<Stream>& streams, const Sizes& sizes,
                          const std::vector<Tensor>& weights, int64_t blocks, double eps, double scale) {
  const int64_t width = sizes.width, x_row = x.size(1);
  const bool begun = x_row > width;
  std::vector<Block> layers;
  Weights from(weights);
  for (int64_t block = 0; block < blocks; ++block)
    layers.emplace_back(from, width, sizes.places, sizes.before + 1, eps);
  STD_TORCH_CHECK(from.done(), "conformer: weights are left over");
  std::vector<int64_t> places{0};  // in the output
  for (const Stream& stream : streams) places.push_back(places.back() + stream.wanted);
  Tensor out = torch::stable::new_empty(x, {places.back(), width});

  const auto pass = [&](const std::vector<int64_t>& members) {
    if (members.empty()) return;
    static thread_local Rooms rooms;
    std::vector<Stream> group;
    int64_t rows = 0;
    for (int64_t b : members) group.push_back(streams[b]), rows += streams[b].chunk;
    float *y = rooms.rows.of(rows * width), *end = y;
    Chunks chunks(group, sizes, rooms);
    float* heads = chunks.begun();
    for (const Stream& stream : group) {
      for (int64_t i = 0; i < stream.chunk; ++i) {
        const float* own = floats(x) + (stream.row + i) * x_row;
        end = std::copy(own, own + width, end);
        if (begun) heads = std::copy(own + width, own + x_row, heads);
      }
    }
    const float factor = static_cast<float>(scale);
    for (int64_t block = 0; block < blocks; ++block) {
      const bool last = block + 1 == blocks, done = begun && block == 0;
      if (last && done) {
        chunks.finish_wanted(layers[block], block, factor, y);
      } else if (last) {
        chunks.begin_and_finish_wanted(layers[block], block, factor, y);
      } else {
        if (!done) chunks.begin(layers[block], y);
        chunks.finish(layers[block], block, factor, y);
      }
    }
    const float* from = y;
    for (int64_t b : members) {
      const int64_t size = streams[b].wanted * width;
      std::memcpy(static_cast<float*>(out.data_ptr()) + places[b] * width, from, size * sizeof(float));
      from += size;
    }
  };
  const int64_t threads = torch::stable::get_num_threads(), count = streams.size();
  if (count < threads || x.size(0) < kFewestRows * threads) {
    std::vector<int64_t> everyone(count);
    std::iota(everyone.begin(), everyone.end(), 0);
    pass(everyone);
  } else {
    const auto groups = groups_of(streams, threads);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread)
        for (const std::vector<int64_t>& members : groups[thread]) pass(members);
    });
  }
  return out;
}

// x (R, D), or (R, D * parts).
Tensor rows_of_streams(const Tensor& x, int64_t heads, int64_t parts = 1) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.scalar_type() == ScalarType::Float && heads > 0 && x.size(1) > 0 &&
                      x.size(1) % (heads * parts) == 0,
                  "conformer: x must be float32 (R, ", parts, " D) of ", heads, " heads");
  return torch::stable::contiguous(x);
}

// Of B streams `chunks` (B) rows of x each, one stream after the other. Keys and values of a chunk are written to its
// window, the last inputs of its convolutions to `after`. The weights are those of all blocks in order, see Block;
// relative positions are those of windows of `size` frames.
Tensor conformer_chunk(Tensor x, Tensor chunks, std::vector<Tensor> weights, std::vector<Tensor> windows, Tensor seen,
                       std::vector<Tensor> past, std::vector<Tensor> after, int64_t heads, int64_t size, int64_t places,
                       double eps, double scale) {
  x = rows_of_streams(x, heads);
  const int64_t rows = x.size(0), width = x.size(1), batch = windows.size();
  STD_TORCH_CHECK(batch > 0 && past.size() == windows.size() && after.size() == windows.size() && past[0].dim() == 3,
                  "conformer_chunk: ", batch, " windows, ", past.size(), " pasts");
  const int64_t* chunk = numbers<int64_t>(chunks, ScalarType::Long, batch, "conformer_chunk: chunks");
  const int64_t* attended = numbers<int64_t>(seen, ScalarType::Long, batch, "conformer_chunk: seen");
  const int64_t blocks = past[0].size(0), before = past[0].size(1);
  STD_TORCH_CHECK(blocks > 0, "conformer_chunk: no blocks");
  Sizes sizes{width, heads, 0, size, places, before};
  std::vector<Stream> streams;
  for (int64_t b = 0, row = 0; b < batch; row += streams[b++].chunk) {
    Stream stream{row, chunk[b], chunk[b]};
    stream.window = of_stream(windows[b], blocks, 2 * width, "a window"), stream.block = windows[b].stride(0);
    stream.frames = windows[b].size(1), stream.seen = attended[b];
    stream.past = of_stream(past[b], blocks, width, "a past");
    stream.kept = of_stream(after[b], blocks, width, "an after");
    STD_TORCH_CHECK(1 <= stream.chunk && stream.chunk <= stream.frames && stream.frames <= size && 1 <= stream.seen &&
                        stream.seen <= stream.frames && row + stream.chunk <= rows,
                    "conformer_chunk: ", stream.seen, " of ", stream.frames, " frames in windows of ", size, " with ",
                    stream.chunk, " of ", rows, " rows");
    STD_TORCH_CHECK(
        past[b].size(1) == before && past[b].is_contiguous() && after[b].size(1) == before && after[b].is_contiguous(),
        "conformer_chunk: the past of stream ", b);
    sizes.chunk = std::max(sizes.chunk, stream.chunk);
    streams.push_back(stream);
  }
  STD_TORCH_CHECK(streams.back().row + streams.back().chunk == rows && places >= size + sizes.chunk - 1 + kSparePlaces,
                  "conformer_chunk: ", rows, " rows, ", places, " places");
  return through_all_blocks(x, streams, sizes, weights, blocks, eps, scale);
}

// What the first block does to each frame alone: x (R, D) -> behind its feed-forward, with queries, keys and values,
// (R, 4 D). A frame is rounded alike whatever it is asked for with.
Tensor conformer_begin(Tensor x, std::vector<Tensor> weights, double eps) {
  x = rows_of_streams(x, 1);
  const int64_t rows = x.size(0), width = x.size(1);
  Weights from(weights);
  Beginning beginning(from, width, eps);
  STD_TORCH_CHECK(from.done(), "conformer: weights are left over");
  for (Panels* each : {&beginning.first.up, &beginning.first.down, &beginning.qkv}) each->steady = true;
  Tensor out = torch::stable::new_empty(x, {rows, 4 * width});
  torch::stable::parallel_for(0, rows, kFewestRows, [&](int64_t begin, int64_t end) {
    static thread_local Rooms rooms;
    for (int64_t some; begin < end; begin += some) {
      some = std::min(end - begin, kRowsTogether);
      const int64_t whole = (some + kSteadyRows - 1) / kSteadyRows * kSteadyRows;
      float *y = rooms.rows.of(whole * width), *heads = rooms.wide.of(whole * 3 * width);
      std::fill(std::copy_n(floats(x) + begin * width, some * width, y), y + whole * width, 0.0f);
      beginning(y, whole, rooms.normed.of(whole * width), heads, rooms.inner);
      float* to = static_cast<float*>(out.data_ptr()) + begin * 4 * width;
      for (int64_t i = 0; i < some; ++i)
        to = std::copy_n(heads + i * 3 * width, 3 * width, std::copy_n(y + i * width, width, to));
    }
  });
  return out;
}

// Whole recordings, `lengths` (B) rows of x each, one after the other: each is a chunk without a past that attends to
// all of itself. Their frames have begun the first block. Of each the first `wanted` (B) frames come out.
Tensor conformer_whole(Tensor x, Tensor lengths, Tensor wanted, std::vector<Tensor> weights, int64_t blocks,
                       int64_t kernel, int64_t heads, int64_t size, double eps, double scale) {
  x = rows_of_streams(x, heads, 4);
  const int64_t rows = x.size(0), width = x.size(1) / 4, batch = lengths.numel();
  const int64_t* length = numbers<int64_t>(lengths, ScalarType::Long, batch, "conformer_whole: lengths");
  const int64_t* first = numbers<int64_t>(wanted, ScalarType::Long, batch, "conformer_whole: wanted");
  STD_TORCH_CHECK(blocks > 0 && kernel > 0 && batch > 0, "conformer_whole: ", batch, " recordings, ", blocks,
                  " blocks, kernels of ", kernel);
  Sizes sizes{width, heads, 0, size, 2 * size - 1 + kSparePlaces, kernel - 1};
  std::vector<Stream> streams;
  int64_t row = 0;
  for (int64_t b = 0; b < batch; row += length[b++]) {
    const int64_t n = length[b];
    STD_TORCH_CHECK(1 <= n && n <= size && row + n <= rows && 1 <= first[b] && first[b] <= n,
                    "conformer_whole: ", first[b], " frames of a recording of ", n, " of ", rows, " rows, at most ",
                    size);
    streams.push_back({row, n, first[b], nullptr, 0, n, n, nullptr, nullptr});
    sizes.chunk = std::max(sizes.chunk, n);
  }
  STD_TORCH_CHECK(row == rows, "conformer_whole: ", row, " of ", rows, " rows");
  return through_all_blocks(x, streams, sizes, weights, blocks, eps, scale);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bestow, m) {
  // x (R, D), of which chunks (B) belong to each of B streams; of each a window (blocks, n, 2 D), the last frames of
  // which are written, and a past (blocks, kernel - 1, D) before and after; seen (B) -> (R, D)
  m.def(
      "conformer_chunk(Tensor x, Tensor chunks, Tensor[] weights, Tensor(a!)[] windows, Tensor seen, Tensor[] past, "
      "Tensor(b!)[] after, int heads, int size, int places, float eps, float scale) -> Tensor");
  // x (R, D) -> (R, 4 D)
  m.def("conformer_begin(Tensor x, Tensor[] weights, float eps) -> Tensor");
  // x (R, 4 D), of which lengths (B) belong to each of B recordings -> the first `wanted` (B) of each, (R', D)
  m.def(
      "conformer_whole(Tensor x, Tensor lengths, Tensor wanted, Tensor[] weights, int blocks, int kernel, int heads, "
      "int size, float eps, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bestow, CPU, m) {
  m.impl("conformer_chunk", TORCH_BOX(&conformer_chunk));
  m.impl("conformer_begin", TORCH_BOX(&conformer_begin));
  m.impl("conformer_whole", TORCH_BOX(&conformer_whole));
}
