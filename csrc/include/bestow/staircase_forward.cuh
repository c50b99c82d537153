// Forward pass: a block holds 16 query rows per warp; tiles of keys and values stream past all warps once.
#pragma once
#include "bestow/mma.cuh"

namespace bestow {

// Keys per tile: K and V, each in two buffers, take 64 KiB at most.
template <class T, int Width>
struct ForwardShape {
  static constexpr int kFit = 16384 / (Width * static_cast<int>(sizeof(T)));
  static constexpr int kKeys = kFit > 64 ? 64 : kFit;
  static constexpr int kRowsFit = 32768 / (Width * static_cast<int>(sizeof(T))) / 16;
  static constexpr int kMaxWarps = kRowsFit > 8 ? 8 : kRowsFit;
  static constexpr int shared_bytes(int warps) {
    return (4 * kKeys + 16 * warps) * Width * static_cast<int>(sizeof(T)) + 16 * static_cast<int>(sizeof(int));
  }
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
      float top = largest[half];
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const int key = first + 8 * n + 2 * (lane % 4) + (i & 1);
          s[n][i] = key < visible[half] ? s[n][i] * scale_log2 : kNothing;
          top = fmaxf(top, s[n][i]);
        }
      top = quad_max(top);
      // A row that has seen nothing yet has no maximum to subtract.
      const float base = top == kNothing ? 0.f : top;
      factor[half] = exp2f(largest[half] - base);
      largest[half] = top;
      float added = 0.f;
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[n][i] = exp2f(s[n][i] - base);
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
__device__ __forceinline__ int block_max(int mine, int* board) {
  if (threadIdx.x % 32 == 0) board[threadIdx.x / 32] = mine;
  block_sync();
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) mine = board[warp] > mine ? board[warp] : mine;
  return mine;
}

template <class T, int Width>
__global__ void __launch_bounds__(256) staircase_forward(const BestowAttention a) {
  using Shape = ForwardShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys;
  const int threads = blockDim.x, warps = threads / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_tiles = (a.queries + 16 * warps - 1) / (16 * warps), pairs = a.batch * a.heads;
  // The last rows see the most: they start first.
  const int row_tile = row_tiles - 1 - static_cast<int>(blockIdx.x) / pairs,
            pair = static_cast<int>(blockIdx.x) % pairs;
  const int stream = pair / a.heads, head = pair % a.heads, kv_head = head / (a.heads / a.kv_heads);
  const int first_row = 16 * warps * row_tile;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Width * sizeof(T);
  const Tile<T, Width> q_tile{memory + 4 * kTileBytes};
  const auto key_tile = [&](int i) { return Tile<T, Width>{memory + (i & 1) * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{memory + ((i & 1) * 2 + 1) * kTileBytes}; };
  int* board = reinterpret_cast<int*>(q_tile.base + 16 * warps * Width * sizeof(T));

  const int row = first_row + 16 * warp + lane / 4;
  const int visible[2] = {seen(a, stream, row), seen(a, stream, row + 8)};
  const int warp_bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
  const int bound = block_max(warp_bound, board);

  const Rows<T> keys = rows_of<T>(a.k, stream, kv_head), values = rows_of<T>(a.v, stream, kv_head);
  const auto bring_keys = [&](int i) {
    bring(key_tile(i), keys, i * kKeys, kKeys, bound, a.width, threadIdx.x, threads);
    bring(value_tile(i), values, i * kKeys, kKeys, bound, a.width, threadIdx.x, threads);
  };
  const int tiles = (bound + kKeys - 1) / kKeys;
  if (tiles > 0) {
    bring(q_tile, rows_of<T>(a.q, stream, head), first_row, 16 * warps, a.queries, a.width, threadIdx.x, threads);
    bring_keys(0);
  }
  copies_commit();

  RunningSoftmax softmax;
  float out[Width / 8][4] = {};
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) bring_keys(i + 1);
    copies_commit();
    copies_wait<1>();
    block_sync();
    const int ahead = warp_bound - i * kKeys;  // keys from this tile's first one on that some row of the warp sees
    if (ahead > 0) {
      float s[kKeys / 8][4] = {};
      multiply_rows<Product, Width, kKeys>(s, q_tile, 16 * warp, key_tile(i), ahead, a.width, lane);
      float factor[2];
      softmax.take<kKeys>(s, visible, i * kKeys, a.scale * kLog2E, factor, lane);
      scale_rows<Width>(out, factor);
      multiply_columns<Product, Width, kKeys, Width>(out, s, value_tile(i), ahead, 0, a.width, lane);
    }
    block_sync();  // the next round overwrites what this one read
  }
  copies_wait<0>();

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(softmax.sum[half]);
    inverse[half] = sum > 0.f ? 1.f / sum : 0.f;
    if (a.lse != nullptr && lane % 4 == 0 && row + 8 * half < a.queries)
      a.lse[static_cast<int64_t>(pair) * a.queries + row + 8 * half] =
          sum > 0.f ? (softmax.largest[half] + log2f(sum)) * kLn2 : kNothing;
  }
  write_rows<T, Width>(rows_of<T>(a.out, stream, head), out, inverse, first_row + 16 * warp, a.queries, 0, a.width,
                       lane);
}

}  // namespace bestow
