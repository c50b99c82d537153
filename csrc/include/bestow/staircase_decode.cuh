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
  // After the keys are done, the same memory holds each warp's result for the merge: 16 rows of Width + 2 floats.
  static constexpr int kStreamBytes = (4 * kKeys * kWarps + 16) * kRowBytes;
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

template <class T, int Width>
__global__ void __launch_bounds__(128) staircase_decode(const BestowAttention a) {
  using Shape = DecodeShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys, kWarps = Shape::kWarps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group_rows = a.heads / a.kv_heads * a.queries, row_tiles = (group_rows + 15) / 16;
  int index = blockIdx.x;
  const int split = index % a.splits;
  index /= a.splits;
  const int first_row = index % row_tiles * 16;
  index /= row_tiles;
  const int kv_head = index % a.kv_heads, stream = index / a.kv_heads;

  int visible[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int packed = first_row + lane / 4 + 8 * half;
    visible[half] = packed < group_rows ? seen(a, stream, packed % a.queries) : 0;
  }
  const int bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
  // The splits share what this stream sees, not what the cache could hold.
  const int tiles = (bound + kKeys - 1) / kKeys, share = (tiles + a.splits - 1) / a.splits;
  const int begin = split * share, end = begin + share < tiles ? begin + share : tiles;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Shape::kRowBytes;
  const Tile<T, Width> q_tile{memory + 4 * kTileBytes * kWarps};
  unsigned char* ring = memory + 4 * kTileBytes * warp;
  const auto key_tile = [&](int i) { return Tile<T, Width>{ring + (i & 1) * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{ring + ((i & 1) * 2 + 1) * kTileBytes}; };
  const Rows<T> keys = rows_of<T>(a.k, stream, kv_head), values = rows_of<T>(a.v, stream, kv_head);
  const auto bring_keys = [&](int tile, int buffer) {
    bring(key_tile(buffer), keys, tile * kKeys, kKeys, bound, a.width, lane, 32);
    bring(value_tile(buffer), values, tile * kKeys, kKeys, bound, a.width, lane, 32);
  };

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
  if (begin + warp < end) bring_keys(begin + warp, 0);
  copies_commit();
  copies_wait<0>();
  block_sync();  // all warps brought queries

  RunningSoftmax softmax;
  float out[Width / 8][4] = {};
  int buffer = 0;
  for (int tile = begin + warp; tile < end; tile += kWarps, ++buffer) {
    if (tile + kWarps < end) bring_keys(tile + kWarps, buffer + 1);
    copies_commit();
    copies_wait<1>();
    warp_sync();
    float s[kKeys / 8][4] = {};
    multiply_rows<Product, Width, kKeys>(s, q_tile, 0, key_tile(buffer), kKeys, a.width, lane);
    float factor[2];
    softmax.take<kKeys>(s, visible, tile * kKeys, a.scale * kLog2E, factor, lane);
    scale_rows<Width>(out, factor);
    multiply_columns<Product, Width, kKeys, Width>(out, s, value_tile(buffer), kKeys, 0, a.width, lane);
    warp_sync();
  }
  copies_wait<0>();
  block_sync();  // nobody reads keys any more; the memory now holds results

  float* results = reinterpret_cast<float*>(memory);
  constexpr int kLine = Width + 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* line = results + (warp * 16 + lane / 4 + 8 * half) * kLine;
    const float sum = quad_sum(softmax.sum[half]);
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      line[8 * n + 2 * (lane % 4)] = out[n][2 * half];
      line[8 * n + 2 * (lane % 4) + 1] = out[n][2 * half + 1];
    }
    if (lane % 4 == 0) line[Width] = softmax.largest[half], line[Width + 1] = sum;
  }
  block_sync();
  for (int r = warp; r < 16 && first_row + r < group_rows; r += kWarps) {
    float top = kNothing, sum = 0.f, weight[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, results[(w * 16 + r) * kLine + Width]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* line = results + (w * 16 + r) * kLine;
      weight[w] = top == kNothing ? 0.f : exp2f(line[Width] - top);
      sum += weight[w] * line[Width + 1];
    }
    float* to = partial_of(a, stream, packed_row(a, kv_head, first_row + r), split);
    for (int d = lane; d < a.width; d += 32) {
      float total = 0.f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += weight[w] * results[(w * 16 + r) * kLine + d];
      to[d] = total;
    }
    if (lane == 0) to[a.width] = top, to[a.width + 1] = sum;
  }
}

// One warp per (stream, head, query) puts the splits together.
template <class T>
__global__ void __launch_bounds__(128) staircase_decode_merge(const BestowAttention a) {
  const int lane = threadIdx.x % 32;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (line >= static_cast<int64_t>(a.batch) * a.heads * a.queries) return;
  const int query = line % a.queries, pair = line / a.queries;
  const int stride = a.width + 2;
  const float* parts = a.partial + line * a.splits * stride;
  float top = kNothing, sum = 0.f;
  for (int i = 0; i < a.splits; ++i) top = fmaxf(top, parts[i * stride + a.width]);
  for (int i = 0; i < a.splits && top != kNothing; ++i)
    sum += exp2f(parts[i * stride + a.width] - top) * parts[i * stride + a.width + 1];
  const float inverse = sum > 0.f ? 1.f / sum : 0.f;
  const Rows<T> out = rows_of<T>(a.out, pair / a.heads, pair % a.heads);
  for (int d = lane; d < a.width; d += 32) {
    float total = 0.f;
    for (int i = 0; i < a.splits && top != kNothing; ++i)
      total += exp2f(parts[i * stride + a.width] - top) * parts[i * stride + d];
    out.data[query * out.stride + d] = narrow<T>(total * inverse);
  }
  if (lane == 0 && a.lse != nullptr) a.lse[line] = sum > 0.f ? (top + log2f(sum)) * kLn2 : kNothing;
}

}  // namespace bestow
