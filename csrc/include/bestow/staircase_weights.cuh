// The softmax itself: where does a token look? One block per query row, its warps take keys in turn, each lane its
// share of the columns. Keys are read twice, for the softmax's denominator and for the weights; the second time they
// are near.
#pragma once
#include "bestow/staircase_forward.cuh"

namespace bestow {

constexpr int kWeightWarps = 4;

template <class T, int Width>
__global__ void __launch_bounds__(32 * kWeightWarps) staircase_weights(const BestowAttention a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t line = blockIdx.x;
  const int row = line % a.queries, pair = line / a.queries, stream = pair / a.heads, head = pair % a.heads;
  const int bound = seen(a, stream, row);
  const Rows<T> q = rows_of<T>(a.q, stream, head), keys = rows_of<T>(a.k, stream, head / (a.heads / a.kv_heads)),
                out = rows_of<T>(a.weights, stream, head);
  float query[Width / 32];
#pragma unroll
  for (int i = 0; i < Width / 32; ++i) {
    const int d = lane + 32 * i;
    query[i] = d < a.width ? widen(q.data[row * q.stride + d]) * a.scale * kLog2E : 0.f;
  }
  const auto score = [&](int key) {  // the same in all lanes
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < Width / 32; ++i) {
      const int d = lane + 32 * i;
      if (d < a.width) sum += query[i] * widen(keys.data[key * keys.stride + d]);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    return sum;
  };

  float top = kNothing, sum = 0.f;
  for (int key = warp; key < bound; key += kWeightWarps) {
    const float s = score(key), larger = fmaxf(top, s);
    sum = sum * power_of_two(top - larger) + power_of_two(s - larger);
    top = larger;
  }
  float* board = reinterpret_cast<float*>(shared_memory());  // of each warp: largest score, sum
  if (lane == 0) board[2 * warp] = top, board[2 * warp + 1] = sum;
  block_sync();
  float largest = kNothing, total = 0.f;
#pragma unroll
  for (int w = 0; w < kWeightWarps; ++w) largest = fmaxf(largest, board[2 * w]);
#pragma unroll
  for (int w = 0; w < kWeightWarps; ++w) {
    if (board[2 * w] != kNothing) total += power_of_two(board[2 * w] - largest) * board[2 * w + 1];
  }
  const float inverse = 1.f / total;
  for (int key = warp; key < bound; key += kWeightWarps) {
    const float weight = power_of_two(score(key) - largest) * inverse;
    if (lane == 0) out.data[row * out.stride + key] = narrow<T>(weight);
  }
  for (int key = bound + threadIdx.x; key < a.keys; key += 32 * kWeightWarps)
    out.data[row * out.stride + key] = narrow<T>(0.f);
}

}  // namespace bestow
