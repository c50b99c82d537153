// A chunk of a few frames, or a whole recording, through all blocks of a conformer in one call.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "conformer_layers.h"
#include "cpu_calls.h"
#include "layers.h"

namespace {

using namespace bestow;             // layers.h
using namespace bestow::conformer;  // conformer_layers.h

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
