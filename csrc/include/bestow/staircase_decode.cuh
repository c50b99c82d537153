// Decoding: 1 to 8 query rows per stream against long keys, which are split over blocks and, inside a block, over warps
// that never wait for each other. All heads that share keys are rows of the same 16-row product, so that the keys are
// read once per group. Lengths are read from device memory; parts beyond a stream's visible keys end at once.
#pragma once
#include "bestow/staircase_forward.cuh"

namespace bestow {

template <class T, int Width>
struct DecodeShape {
  static constexpr int kKeys = 16;
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kWarpsFit = 65536 / (4 * kKeys * kRowBytes);
  static constexpr int kWarps = kWarpsFit > 4 ? 4 : kWarpsFit;
  static constexpr int kStages = kRowBytes <= 128 ? 3 : 2;  // tiles of a warp: one that is read, others on their way
  // After the keys are done, the same memory holds each warp's result for the merge: 16 rows of Width + 2 floats.
  static constexpr int kStreamBytes = (2 * kStages * kKeys * kWarps + 16) * kRowBytes;
  static constexpr int kMergeBytes = kWarps * 16 * (Width + 2) * 4;
  static constexpr int kSharedBytes = kStreamBytes > kMergeBytes ? kStreamBytes : kMergeBytes;
};

// The packed row p of a group: head p / queries of the group, query p % queries.
struct PackedRow {
  int head, query;
};
__device__ __forceinline__ PackedRow packed_row(const BestowAttention& a, int kv_head, int packed) {
  return {kv_head * (a.heads / a.kv_heads) + packed / a.queries, packed % a.queries};
}

// Scratch, per (stream, head, query, split): `width` floats of the un-normalised output, then maximum and sum.
__device__ __forceinline__ float* partial_of(const BestowAttention& a, int stream, PackedRow row, int split) {
  const int64_t line = (static_cast<int64_t>(stream) * a.heads + row.head) * a.queries + row.query;
  return a.partial + (line * a.splits + split) * (a.width + 2);
}

// What is known of a row's column when all parts are together.
template <class T>
__device__ __forceinline__ void write_merged(const BestowAttention& a, int stream, int head, int query, int column,
                                             float top, float sum, float total) {
  const Rows<T> out = rows_of<T>(a.out, stream, head);
  if (column < a.width) out.data[query * out.stride + column] = narrow<T>(sum > 0.f ? total / sum : 0.f);
  if (column == 0 && a.lse != nullptr)
    a.lse[(static_cast<int64_t>(stream) * a.heads + head) * a.queries + query] =
        sum > 0.f ? (top + log2f(sum)) * kLn2 : kNothing;
}

// Puts together what `count` parts found for one row and writes 32 columns of its output, from `column` on, by one
// warp. part(i, d): the i-th part's output in column d before it is divided, its largest score in column `width`, its
// sum in the one behind.
template <class T, class Part>
__device__ __forceinline__ void merge_parts(const BestowAttention& a, int count, const Part& part, int stream, int head,
                                            int query, int column, int lane) {
  float top = kNothing;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, part(i, a.width));
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) top = fmaxf(top, shuffle_xor(top, mask));
  const float base = top == kNothing ? 0.f : top;  // what saw nothing weighs nothing then
  const int d = column + lane < a.width ? column + lane : a.width - 1;
  float sum = 0.f, total = 0.f;
  for (int first = 0; first < count; first += 32) {
    const int mine = first + lane;
    const float weight = mine < count ? power_of_two(part(mine, a.width) - base) : 0.f;
    sum += mine < count ? weight * part(mine, a.width + 1) : 0.f;
#pragma unroll 8
    for (int i = 0; i < 32 && first + i < count; ++i) total += shuffle(weight, i) * part(first + i, d);
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
  write_merged<T>(a, stream, head, query, column + lane, top, sum, total);
}

// The part of a block: its warps' results side by side in shared memory, 16 rows of Width + 2 floats each, as
// merge_parts wants them.
template <class T, int Width>
struct DecodePart {
  static constexpr int kLine = Width + 2;
  float* results;
  int first_row, group_rows, stream, kv_head, split;
};

template <class T, int Width>
__device__ __forceinline__ DecodePart<T, Width> decode_part(const BestowAttention& a) {
  using Shape = DecodeShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys, kWarps = Shape::kWarps, kStages = Shape::kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_rows = a.heads / a.kv_heads * a.queries, row_tiles = (group_rows + 15) / 16;
  int index = blockIdx.x;
  const int split = index % a.splits;
  index /= a.splits;
  const int first_row = index % row_tiles * 16;
  index /= row_tiles;
  const int kv_head = index % a.kv_heads, stream = index / a.kv_heads;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Shape::kRowBytes;
  const Tile<T, Width> q_tile{memory + 2 * kStages * kTileBytes * kWarps};
  // Queries first: they need not wait for the answer to who sees what.
  for (int r = warp; r < 16; r += kWarps) {
    const bool real = first_row + r < group_rows;
    const PackedRow row = packed_row(a, kv_head, real ? first_row + r : 0);
    for (int c = lane; c < Tile<T, Width>::kChunks; c += 32) {
      const bool valid = real && c * Tile<T, Width>::kPerChunk < a.width;
      const Rows<T> q = rows_of<T>(a.q, stream, row.head);
      copy_async(q_tile.chunk(r, c), q.data + (valid ? row.query * q.stride + c * Tile<T, Width>::kPerChunk : 0),
                 valid);
    }
  }

  unsigned char* ring = memory + 2 * kStages * kTileBytes * warp;
  const auto key_tile = [&](int i) { return Tile<T, Width>{ring + i % kStages * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{ring + (i % kStages * 2 + 1) * kTileBytes}; };
  const Rows<T> keys = rows_of<T>(a.k, stream, kv_head), values = rows_of<T>(a.v, stream, kv_head);
  // Tiles go round all warps of all splits: each has its share of what the stream sees, not of what the cache could
  // hold, and knows its first tile before it knows how much that is. Keys that turn out not to be seen do no harm,
  // values would.
  const auto tile_of = [&](int i) { return (i * a.splits + split) * kWarps + warp; };
  bring<kKeys, 32>(key_tile(0), keys, tile_of(0) * kKeys, a.keys, a.width, lane);

  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int packed = first_row + lane / 4 + 8 * half;
    visible[half] = packed < group_rows ? seen(a, stream, packed % a.queries) : 0;
  }
  const int bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
  const auto bring_values = [&](int i) {
    bring<kKeys, 32>(value_tile(i), values, tile_of(i) * kKeys, bound, a.width, lane);
    copies_commit();
  };
  const auto bring_both = [&](int i) {
    if (tile_of(i) * kKeys < bound) {
      bring<kKeys, 32>(key_tile(i), keys, tile_of(i) * kKeys, bound, a.width, lane);
      bring_values(i);
    } else {
      copies_commit();
    }
  };
  bring_values(0);
#pragma unroll
  for (int i = 1; i < kStages - 1; ++i) bring_both(i);
  copies_wait<kStages - 2>();
  block_sync();  // all warps brought queries

  RunningSoftmax softmax;
  float out[Width / 8][4] = {};
  for (int i = 0; tile_of(i) * kKeys < bound; ++i) {
    copies_wait<kStages - 2>();
    warp_sync();  // the tile is here, and the one before, whose place the next one takes, has been read
    bring_both(i + kStages - 1);
    float s[kKeys / 8][4] = {};
    multiply_rows<Product, Width, kKeys>(s, q_tile, 0, key_tile(i), 0, a.width, lane);
    float factor[2];
    softmax.take<kKeys>(s, visible, tile_of(i) * kKeys, a.scale * kLog2E, factor, lane);
    scale_rows<Width>(out, factor);
    multiply_columns<Product, Width, kKeys, Width>(out, s, value_tile(i), 0, 0, a.width, lane);
  }
  copies_wait<0>();
  block_sync();  // nobody reads keys any more; the memory now holds results

  float* results = reinterpret_cast<float*>(memory);
  constexpr int kLine = DecodePart<T, Width>::kLine;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const float sum = quad_sum(softmax.sum[half]);
    if (first_row + row >= group_rows) continue;
    float* line = results + (warp * 16 + row) * kLine;
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      const int d = 8 * n + 2 * (lane % 4);
      if (d < a.width) line[d] = out[n][2 * half], line[d + 1] = out[n][2 * half + 1];
    }
    if (lane % 4 == 0) line[a.width] = softmax.largest[half], line[a.width + 1] = sum;
  }
  return {results, first_row, group_rows, stream, kv_head, split};
}

// One warp puts together what the block's warps found for row r; `to` may be where one of them has it.
template <class T, int Width>
__device__ __forceinline__ void merge_warps(float* to, const BestowAttention& a, const DecodePart<T, Width>& found,
                                            int r, int lane) {
  constexpr int kWarps = DecodeShape<T, Width>::kWarps, kLine = DecodePart<T, Width>::kLine;
  float top = kNothing, sum = 0.f, weight[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) top = fmaxf(top, found.results[(w * 16 + r) * kLine + a.width]);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float* line = found.results + (w * 16 + r) * kLine;
    weight[w] = top == kNothing ? 0.f : power_of_two(line[a.width] - top);
    sum += weight[w] * line[a.width + 1];
  }
  warp_sync();  // all have read what the first lane writes below
  for (int d = lane; d < a.width; d += 32) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += weight[w] * found.results[(w * 16 + r) * kLine + d];
    to[d] = total;
  }
  if (lane == 0) to[a.width] = top, to[a.width + 1] = sum;
}

constexpr int kMostSplits = 8;  // blocks of a cluster

// The splits of a (stream, head of keys) are a cluster, whose blocks read each other's shared memory: no scratch and no
// second kernel. Needs sm_90.
template <class T, int Width>
__global__ void __launch_bounds__(128) staircase_decode_clustered(const BestowAttention a) {
#ifdef BESTOW_CLUSTERS
  constexpr int kWarps = DecodeShape<T, Width>::kWarps, kLine = DecodePart<T, Width>::kLine;
  const auto found = decode_part<T, Width>(a);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = found.group_rows - found.first_row < 16 ? found.group_rows - found.first_row : 16;
  block_sync();
  for (int r = warp; r < rows; r += kWarps) merge_warps(found.results + r * kLine, a, found, r, lane);
  cluster_sync();
  const int chunks = (a.width + 31) / 32;  // of columns: each by any warp of the cluster
  for (int i = found.split * kWarps + warp; i < rows * chunks; i += a.splits * kWarps) {
    const int r = i / chunks;
    const PackedRow row = packed_row(a, found.kv_head, found.first_row + r);
    const int column = i % chunks * 32 + lane, d = column < a.width ? column : a.width - 1;
    // All is asked for at once: another block's memory is not near.
    float tops[kMostSplits], sums[kMostSplits], totals[kMostSplits], top = kNothing, sum = 0.f, total = 0.f;
#pragma unroll
    for (int rank = 0; rank < kMostSplits; ++rank) {
      const float* line = found.results + r * kLine;
      const bool there = rank < a.splits;
      tops[rank] = there ? cluster_read(line + a.width, rank) : kNothing;
      sums[rank] = there ? cluster_read(line + a.width + 1, rank) : 0.f;
      totals[rank] = there ? cluster_read(line + d, rank) : 0.f;
    }
#pragma unroll
    for (int rank = 0; rank < kMostSplits; ++rank) top = fmaxf(top, tops[rank]);
#pragma unroll
    for (int rank = 0; rank < kMostSplits; ++rank) {
      const float weight = top == kNothing ? 0.f : power_of_two(tops[rank] - top);
      sum += weight * sums[rank], total += weight * totals[rank];
    }
    write_merged<T>(a, found.stream, row.head, row.query, column, top, sum, total);
  }
  cluster_sync();  // nobody leaves while others read
#endif
}

// Without clusters each block writes what it found to scratch, and a second kernel puts it together.
template <class T, int Width>
__global__ void __launch_bounds__(128) staircase_decode(const BestowAttention a) {
  const auto found = decode_part<T, Width>(a);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  block_sync();
  for (int r = warp; r < 16 && found.first_row + r < found.group_rows; r += DecodeShape<T, Width>::kWarps)
    merge_warps(partial_of(a, found.stream, packed_row(a, found.kv_head, found.first_row + r), found.split), a, found,
                r, lane);
}

// One warp per (stream, head, query) and 32 columns.
template <class T>
__global__ void __launch_bounds__(128) staircase_decode_merge(const BestowAttention a) {
  const int lane = threadIdx.x % 32, chunks = (a.width + 31) / 32;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, line = item / chunks;
  if (line >= static_cast<int64_t>(a.batch) * a.heads * a.queries) return;
  const int query = line % a.queries, pair = line / a.queries;
  const float* parts = a.partial + line * a.splits * (a.width + 2);
  const auto part = [&](int i, int d) { return parts[i * (a.width + 2) + d]; };
  merge_parts<T>(a, a.splits, part, pair / a.heads, pair % a.heads, query, item % chunks * 32, lane);
}

}  // namespace bestow
