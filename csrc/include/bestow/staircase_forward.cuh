// Forward pass: a block holds 16 query rows per warp; tiles of keys and values stream past all warps once.
#pragma once
#include "bestow/mma.cuh"

namespace bestow {

// How a block is cut. Shared memory holds its queries, 32 KiB at most, and tiles of keys and values: one that is read
// and others on their way, so many that memory is never waited for. Two such blocks share a multiprocessor.
template <class T, int Width>
struct ForwardShape {
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kRowsFit = 32768 / kRowBytes / 16;
  static constexpr int kWarps = kRowsFit > 8 ? 8 : kRowsFit;  // one without rows helps to load
  static constexpr int kFit = 16384 / kRowBytes;
  static constexpr int kKeys = kRowBytes <= 128 ? 64 : kFit > 32 ? 32 : kFit;  // of a tile
  static constexpr int kStep = sizeof(T) == 2 ? 32 : 16;  // keys that a warp takes at once, or leaves out
  static constexpr int kStages = 65536 / (2 * kKeys * kRowBytes) > 4 ? 4 : 65536 / (2 * kKeys * kRowBytes);
  static constexpr int kBlocks = sizeof(T) == 2 ? 2 : 1;  // plain multiply-adds need more registers
  static constexpr int kRows = 16 * kWarps, kThreads = 32 * kWarps;
  static constexpr int kSharedBytes =
      (2 * kStages * kKeys + kRows) * kRowBytes + (kWarps + kRows) * static_cast<int>(sizeof(int));
};

// The running softmax of the two accumulator rows of a lane, in powers of two.
struct RunningSoftmax {
  float largest[2] = {kNothing, kNothing};
  float sum[2] = {0.f, 0.f};  // of this lane's columns only

  // Turns scores of keys first, first + 1, ... into weights relative to the new maximum; `factor` is what everything
  // summed so far must be multiplied by.
  template <int Columns>
  __device__ __forceinline__ void take(float (&s)[Columns / 8][4], const int (&visible)[2], int first, float scale_log2,
                                       float (&factor)[2], int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int ahead = visible[half] - first - 2 * (lane % 4);  // keys seen from this lane's first column on
      float top = largest[half];
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = 8 * n + (i & 1) < ahead ? s[n][i] * scale_log2 : kNothing;
          top = fmaxf(top, s[n][i]);
        }
      top = quad_max(top);
      // A row that has seen nothing yet has no maximum to subtract.
      const float base = top == kNothing ? 0.f : top;
      factor[half] = power_of_two(largest[half] - base);
      largest[half] = top;
      float added = 0.f;
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = power_of_two(s[n][i] - base);
          added += s[n][i];
        }
      sum[half] = sum[half] * factor[half] + added;
    }
  }
};

template <int Columns>
__device__ __forceinline__ void scale_rows(float (&c)[Columns / 8][4], const float (&factor)[2]) {
#pragma unroll
  for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] *= factor[i / 2];
}

// The largest `mine` of all warps of the block; `board` is room for one int per warp.
template <int Warps>
__device__ __forceinline__ int block_max(int mine, int* board) {
  if (threadIdx.x % 32 == 0) board[threadIdx.x / 32] = mine;
  block_sync();
#pragma unroll
  for (int warp = 0; warp < Warps; ++warp) mine = board[warp] > mine ? board[warp] : mine;
  return mine;
}

// Which 16 rows of the block a warp takes. The later a row, the more it sees, and a multiprocessor has four parts, to
// which warps belong by turns: each part gets early rows and late ones.
template <int Warps>
__device__ __forceinline__ int row_group(int warp) {
  if constexpr (Warps == 8) return warp < 4 ? 7 - warp : warp - 4;
  return (warp + block_number()) % Warps;
}

// Which rows of which (stream, head) a block works on. Blocks whose rows come last see the most: they start first.
struct RowBlock {
  int stream, head, kv_head, first_row;

  __device__ __forceinline__ RowBlock(const BestowAttention& a, int rows) {
    const int number = block_number(), pairs = a.batch * a.heads, pair = number % pairs;
    stream = pair / a.heads, head = pair % a.heads, kv_head = head / (a.heads / a.kv_heads);
    first_row = ((a.queries + rows - 1) / rows - 1 - number / pairs) * rows;
  }
  __device__ __forceinline__ int64_t line(const BestowAttention& a, int row) const {
    return (static_cast<int64_t>(stream) * a.heads + head) * a.queries + row;
  }
};

template <class T, int Width>
__global__ void __launch_bounds__(ForwardShape<T, Width>::kThreads, ForwardShape<T, Width>::kBlocks)
    staircase_forward(const BestowAttention a) {
  using Shape = ForwardShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys, kStep = Shape::kStep, kStages = Shape::kStages;
  constexpr int kRows = Shape::kRows, kThreads = Shape::kThreads;
  const int group = row_group<Shape::kWarps>(threadIdx.x / 32), lane = threadIdx.x % 32;
  const RowBlock at(a, kRows);

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Width * sizeof(T);
  const Tile<T, Width> q_tile{memory + 2 * kStages * kTileBytes};
  const auto key_tile = [&](int i) { return Tile<T, Width>{memory + i % kStages * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{memory + (i % kStages * 2 + 1) * kTileBytes}; };
  int* board = reinterpret_cast<int*>(q_tile.base + kRows * Shape::kRowBytes);

  // What each row sees lies in shared memory: registers are full.
  int* sees = board + Shape::kWarps + 16 * group;
  const int mine = lane < 16 ? seen(a, at.stream, at.first_row + 16 * group + lane) : 0;
  if (lane < 16) sees[lane] = mine;
  const int warp_bound = warp_max(mine);
  const int bound = block_max<Shape::kWarps>(warp_bound, board);

  const Rows<T> keys = rows_of<T>(a.k, at.stream, at.kv_head), values = rows_of<T>(a.v, at.stream, at.kv_head);
  const auto bring_keys = [&](int i) {
    bring<kKeys, kThreads>(key_tile(i), keys, i * kKeys, bound, a.width, threadIdx.x);
    bring<kKeys, kThreads>(value_tile(i), values, i * kKeys, bound, a.width, threadIdx.x);
  };
  const int tiles = (bound + kKeys - 1) / kKeys;
  if (tiles > 0)
    bring<kRows, kThreads>(q_tile, rows_of<T>(a.q, at.stream, at.head), at.first_row, a.queries, a.width, threadIdx.x);
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < tiles) bring_keys(i);
    copies_commit();
  }

  RunningSoftmax softmax;
  float out[Width / 8][4] = {};
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    copies_wait<kStages - 2>();
    block_sync();  // tile i is here, and tile i - 1, whose place the next one takes, has been read by all
    if (i + kStages - 1 < tiles) bring_keys(i + kStages - 1);
    copies_commit();
#pragma unroll 1
    for (int step = 0; step < kKeys; step += kStep) {
      const int first = i * kKeys + step;
      if (first >= warp_bound) break;  // no row of this warp sees it
      float s[kStep / 8][4] = {};
      multiply_rows<Product, Width, kStep>(s, q_tile, 16 * group, key_tile(i), step, a.width, lane);
      const int visible[2] = {sees[lane / 4], sees[lane / 4 + 8]};
      float factor[2];
      softmax.take<kStep>(s, visible, first, a.scale * kLog2E, factor, lane);
      scale_rows<Width>(out, factor);
      multiply_columns<Product, Width, kStep, Width>(out, s, value_tile(i), step, 0, a.width, lane);
    }
  }
  copies_wait<0>();

  const RowBlock here(a, kRows);
  const int first = here.first_row + 16 * group;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(softmax.sum[half]);
    inverse[half] = sum == 0.f ? 0.f : 1.f / sum;
    const int own = first + lane / 4 + 8 * half;
    if (a.lse != nullptr && lane % 4 == 0 && own < a.queries)
      a.lse[here.line(a, own)] = sum == 0.f ? kNothing : (softmax.largest[half] + log2f(sum)) * kLn2;
  }
  write_rows<T, Width>(rows_of<T>(a.out, here.stream, here.head), out, inverse, first, a.queries, a.width, q_tile,
                       16 * group, lane);
}

}  // namespace bestow
