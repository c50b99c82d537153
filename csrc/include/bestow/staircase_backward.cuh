// Backward pass without atomics: dQ by rows (keys stream past), dK and dV by keys (rows stream past), each element
// written by exactly one thread, so that the same inputs always give the same bits.
#pragma once
#include "bestow/staircase_forward.cuh"

namespace bestow {

// delta[row] = sum over columns of out * grad_out: what the softmax's gradient subtracts. One warp per row.
template <class T>
__global__ void __launch_bounds__(128) staircase_delta(const BestowAttention a) {
  const int lane = threadIdx.x % 32;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (line >= static_cast<int64_t>(a.batch) * a.heads * a.queries) return;
  const int row = line % a.queries, pair = line / a.queries, stream = pair / a.heads, head = pair % a.heads;
  const Rows<T> out = rows_of<T>(a.out, stream, head), grad = rows_of<T>(a.grad_out, stream, head);
  float sum = 0.f;
  for (int d = lane; d < a.width; d += 32)
    sum += widen(out.data[row * out.stride + d]) * widen(grad.data[row * grad.stride + d]);
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
  if (lane == 0) a.delta[line] = sum;
}

template <class T, int Width>
struct RowGradientShape {
  static constexpr int kFit = 8192 / (Width * static_cast<int>(sizeof(T)));
  static constexpr int kKeys = kFit > 32 ? 32 : kFit < 16 ? 16 : kFit;
  static constexpr int kRowsFit = 32768 / (Width * static_cast<int>(sizeof(T))) / 32;
  static constexpr int kMaxWarps = kRowsFit > 4 ? 4 : kRowsFit;
  static constexpr int shared_bytes(int warps) {
    return (4 * kKeys + 32 * warps) * Width * static_cast<int>(sizeof(T)) + 16 * static_cast<int>(sizeof(int));
  }
};

// dQ = scale * dS K with dS = P * (dO V^T - delta).
template <class T, int Width>
__global__ void __launch_bounds__(128) staircase_row_gradient(const BestowAttention a) {
  using Shape = RowGradientShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys;
  const int threads = blockDim.x, warps = threads / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row_tiles = (a.queries + 16 * warps - 1) / (16 * warps), pairs = a.batch * a.heads;
  const int row_tile = row_tiles - 1 - static_cast<int>(blockIdx.x) / pairs,
            pair = static_cast<int>(blockIdx.x) % pairs;
  const int stream = pair / a.heads, head = pair % a.heads, kv_head = head / (a.heads / a.kv_heads);
  const int first_row = 16 * warps * row_tile;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Width * sizeof(T);
  const Tile<T, Width> q_tile{memory + 4 * kTileBytes};
  const Tile<T, Width> grad_tile{q_tile.base + 16 * warps * Width * sizeof(T)};
  const auto key_tile = [&](int i) { return Tile<T, Width>{memory + (i & 1) * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{memory + ((i & 1) * 2 + 1) * kTileBytes}; };
  int* board = reinterpret_cast<int*>(grad_tile.base + 16 * warps * Width * sizeof(T));

  const int row = first_row + 16 * warp + lane / 4;
  const int visible[2] = {seen(a, stream, row), seen(a, stream, row + 8)};
  const int warp_bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
  const int bound = block_max(warp_bound, board);
  float lse[2] = {0.f, 0.f}, delta[2] = {0.f, 0.f};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (visible[half] > 0) {
      const int64_t line = static_cast<int64_t>(pair) * a.queries + row + 8 * half;
      lse[half] = a.lse[line] * kLog2E;
      delta[half] = a.delta[line];
    }

  const Rows<T> keys = rows_of<T>(a.k, stream, kv_head), values = rows_of<T>(a.v, stream, kv_head);
  const auto bring_keys = [&](int i) {
    bring(key_tile(i), keys, i * kKeys, kKeys, bound, a.width, threadIdx.x, threads);
    bring(value_tile(i), values, i * kKeys, kKeys, bound, a.width, threadIdx.x, threads);
  };
  const int tiles = (bound + kKeys - 1) / kKeys;
  if (tiles > 0) {
    const int rows = 16 * warps;
    bring(q_tile, rows_of<T>(a.q, stream, head), first_row, rows, a.queries, a.width, threadIdx.x, threads);
    bring(grad_tile, rows_of<T>(a.grad_out, stream, head), first_row, rows, a.queries, a.width, threadIdx.x, threads);
    bring_keys(0);
  }
  copies_commit();

  float grad_q[Width / 8][4] = {};
  for (int i = 0; i < tiles; ++i) {
    if (i + 1 < tiles) bring_keys(i + 1);
    copies_commit();
    copies_wait<1>();
    block_sync();
    const int ahead = warp_bound - i * kKeys;
    if (ahead > 0) {
      float s[kKeys / 8][4] = {}, grad_p[kKeys / 8][4] = {};
      multiply_rows<Product, Width, kKeys>(s, q_tile, 16 * warp, key_tile(i), ahead, a.width, lane);
      multiply_rows<Product, Width, kKeys>(grad_p, grad_tile, 16 * warp, value_tile(i), ahead, a.width, lane);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int half = j / 2, key = i * kKeys + 8 * n + 2 * (lane % 4) + (j & 1);
          const float p = exp2f(s[n][j] * (a.scale * kLog2E) - lse[half]);
          s[n][j] = key < visible[half] ? p * (grad_p[n][j] - delta[half]) : 0.f;
        }
      multiply_columns<Product, Width, kKeys, Width>(grad_q, s, key_tile(i), ahead, 0, a.width, lane);
    }
    block_sync();
  }
  copies_wait<0>();
  const float factor[2] = {a.scale, a.scale};
  write_rows<T, Width>(rows_of<T>(a.grad_q, stream, head), grad_q, factor, first_row + 16 * warp, a.queries, 0, a.width,
                       lane);
}

template <class T, int Width>
struct KeyGradientShape {
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kFit = 8192 / kRowBytes;
  static constexpr int kRows = kFit > 32 ? 32 : kFit < 16 ? 16 : kFit;
  static constexpr int kWarpsFit = (98304 - 4 * kRows * kRowBytes) / (32 * kRowBytes);
  static constexpr int kMaxWarps = kWarpsFit > 4 ? 4 : kWarpsFit;
  // Two accumulators of 16 x 256 would not fit the registers: wide heads are done in parts of 128 columns.
  static constexpr int kColumns = Width > 128 ? 128 : Width;
  static constexpr int kParts = Width / kColumns;
  static constexpr int shared_bytes(int warps) {
    return (4 * kRows + 32 * warps) * kRowBytes + 2 * kRows * 3 * static_cast<int>(sizeof(float));
  }
};

// dV = P^T dO and dK = scale * dS^T Q, computed on the transposed scores: rows of an accumulator are keys. A tile of
// rows none of which sees the block's first key is never loaded; a warp whose own keys are not seen skips the products.
template <class T, int Width>
__global__ void __launch_bounds__(128) staircase_key_gradient(const BestowAttention a) {
  using Shape = KeyGradientShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  const int threads = blockDim.x, warps = threads / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int key_tiles = (a.keys + 16 * warps - 1) / (16 * warps), group = a.heads / a.kv_heads;
  int index = blockIdx.x;
  const int kv_head = index % a.kv_heads;
  index /= a.kv_heads;
  const int stream = index % a.batch;
  index /= a.batch;
  const int key_tile = index % key_tiles, column = index / key_tiles * kColumns;
  const int first_key = 16 * warps * key_tile, warp_key = first_key + 16 * warp;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kRows * Shape::kRowBytes;
  const auto q_tile = [&](int i) { return Tile<T, Width>{memory + (i & 1) * 2 * kTileBytes}; };
  const auto grad_tile = [&](int i) { return Tile<T, Width>{memory + ((i & 1) * 2 + 1) * kTileBytes}; };
  const Tile<T, Width> k_tile{memory + 4 * kTileBytes};
  const Tile<T, Width> v_tile{k_tile.base + 16 * warps * Shape::kRowBytes};
  // Of each row of the two row tiles: visible, log-sum-exp (of powers of two), delta.
  float* facts = reinterpret_cast<float*>(v_tile.base + 16 * warps * Shape::kRowBytes);

  // The step-th tile of rows: heads of the group one after the other. Whether any of its rows sees `key`:
  const int row_tiles = (a.queries + kRows - 1) / kRows, steps = row_tiles * group;
  const auto tile_sees = [&](int step, int key) {
    const int row = step % row_tiles * kRows + lane;
    return warp_max(lane < kRows ? seen(a, stream, row) : 0) > key;
  };
  const auto next_step = [&](int step) {
    while (step < steps && !tile_sees(step, first_key)) ++step;
    return step;
  };
  const auto bring_rows = [&](int step, int buffer) {
    const int head = kv_head * group + step / row_tiles, first = step % row_tiles * kRows;
    bring(q_tile(buffer), rows_of<T>(a.q, stream, head), first, kRows, a.queries, a.width, threadIdx.x, threads);
    bring(grad_tile(buffer), rows_of<T>(a.grad_out, stream, head), first, kRows, a.queries, a.width, threadIdx.x,
          threads);
    float* fact = facts + (buffer & 1) * 3 * kRows;
    for (int r = threadIdx.x; r < kRows; r += threads) {
      const int visible = seen(a, stream, first + r);
      const int64_t line = (static_cast<int64_t>(stream) * a.heads + head) * a.queries + first + r;
      fact[r] = static_cast<float>(visible);
      fact[kRows + r] = visible > 0 ? a.lse[line] * kLog2E : 0.f;
      fact[2 * kRows + r] = visible > 0 ? a.delta[line] : 0.f;
    }
  };

  int step = next_step(0);
  if (step < steps) {
    const int count = 16 * warps;
    bring(k_tile, rows_of<T>(a.k, stream, kv_head), first_key, count, a.keys, a.width, threadIdx.x, threads);
    bring(v_tile, rows_of<T>(a.v, stream, kv_head), first_key, count, a.keys, a.width, threadIdx.x, threads);
    bring_rows(step, 0);
  }
  copies_commit();

  float grad_k[kColumns / 8][4] = {}, grad_v[kColumns / 8][4] = {};
  for (int i = 0; step < steps; ++i) {
    const int following = next_step(step + 1);
    if (following < steps) bring_rows(following, i + 1);
    copies_commit();
    copies_wait<1>();
    block_sync();
    if (tile_sees(step, warp_key)) {
      const float* fact = facts + (i & 1) * 3 * kRows;
      float s[kRows / 8][4] = {}, grad_p[kRows / 8][4] = {};
      multiply_rows<Product, Width, kRows>(s, k_tile, 16 * warp, q_tile(i), kRows, a.width, lane);
      multiply_rows<Product, Width, kRows>(grad_p, v_tile, 16 * warp, grad_tile(i), kRows, a.width, lane);
#pragma unroll
      for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int r = 8 * n + 2 * (lane % 4) + (j & 1), key = warp_key + lane / 4 + 8 * (j / 2);
          const bool sees = static_cast<float>(key) < fact[r];
          // Selected, not multiplied: keys that nobody sees may hold anything.
          const float p = exp2f(s[n][j] * (a.scale * kLog2E) - fact[kRows + r]);
          s[n][j] = sees ? p : 0.f;
          grad_p[n][j] = sees ? p * (grad_p[n][j] - fact[2 * kRows + r]) : 0.f;
        }
      multiply_columns<Product, Width, kRows, kColumns>(grad_v, s, grad_tile(i), kRows, column, a.width, lane);
      multiply_columns<Product, Width, kRows, kColumns>(grad_k, grad_p, q_tile(i), kRows, column, a.width, lane);
    }
    block_sync();
    step = following;
  }
  copies_wait<0>();
  const float once[2] = {1.f, 1.f}, scaled[2] = {a.scale, a.scale};
  write_rows<T, kColumns>(rows_of<T>(a.grad_v, stream, kv_head), grad_v, once, warp_key, a.keys, column, a.width, lane);
  write_rows<T, kColumns>(rows_of<T>(a.grad_k, stream, kv_head), grad_k, scaled, warp_key, a.keys, column, a.width,
                          lane);
}

}  // namespace bestow
