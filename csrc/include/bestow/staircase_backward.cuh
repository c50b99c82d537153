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
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kFit = 8192 / kRowBytes;
  static constexpr int kKeys = kFit > 32 ? 32 : kFit < 16 ? 16 : kFit;  // of a tile, and of a step
  static constexpr int kRowsFit = 32768 / kRowBytes / 32;
  static constexpr int kWarps = kRowsFit > 4 ? 4 : kRowsFit;
  static constexpr int kStages = 2, kBlocks = sizeof(T) == 4 || Width > 128 ? 1 : 3;
  static constexpr int kRows = 16 * kWarps, kThreads = 32 * kWarps;
  static constexpr int kSharedBytes =
      (2 * kStages * kKeys + 2 * kRows) * kRowBytes + kWarps * static_cast<int>(sizeof(int));
};

// dQ = scale * dS K with dS = P * (dO V^T - delta).
template <class T, int Width>
__global__ void __launch_bounds__(RowGradientShape<T, Width>::kThreads, RowGradientShape<T, Width>::kBlocks)
    staircase_row_gradient(const BestowAttention a) {
  using Shape = RowGradientShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kKeys = Shape::kKeys, kStages = Shape::kStages;
  constexpr int kRows = Shape::kRows, kThreads = Shape::kThreads;
  const int group = row_group<Shape::kWarps>(threadIdx.x / 32), lane = threadIdx.x % 32;
  const RowBlock at(a, kRows);

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Width * sizeof(T);
  const Tile<T, Width> q_tile{memory + 2 * kStages * kTileBytes};
  const Tile<T, Width> grad_tile{q_tile.base + kRows * Shape::kRowBytes};
  const auto key_tile = [&](int i) { return Tile<T, Width>{memory + i % kStages * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{memory + (i % kStages * 2 + 1) * kTileBytes}; };
  int* board = reinterpret_cast<int*>(grad_tile.base + kRows * Shape::kRowBytes);

  const int row = at.first_row + 16 * group + lane / 4;
  const int visible[2] = {seen(a, at.stream, row), seen(a, at.stream, row + 8)};
  const int warp_bound = warp_max(visible[0] > visible[1] ? visible[0] : visible[1]);
  const int bound = block_max<Shape::kWarps>(warp_bound, board);
  float lse[2] = {0.f, 0.f}, delta[2] = {0.f, 0.f};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (visible[half] > 0) {
      const int64_t line = at.line(a, row + 8 * half);
      lse[half] = a.lse[line] * kLog2E;
      delta[half] = a.delta[line];
    }

  const Rows<T> keys = rows_of<T>(a.k, at.stream, at.kv_head), values = rows_of<T>(a.v, at.stream, at.kv_head);
  const auto bring_keys = [&](int i) {
    bring<kKeys, kThreads>(key_tile(i), keys, i * kKeys, bound, a.width, threadIdx.x);
    bring<kKeys, kThreads>(value_tile(i), values, i * kKeys, bound, a.width, threadIdx.x);
  };
  const int tiles = (bound + kKeys - 1) / kKeys;
  if (tiles > 0) {
    const Rows<T> queries = rows_of<T>(a.q, at.stream, at.head), grads = rows_of<T>(a.grad_out, at.stream, at.head);
    bring<kRows, kThreads>(q_tile, queries, at.first_row, a.queries, a.width, threadIdx.x);
    bring<kRows, kThreads>(grad_tile, grads, at.first_row, a.queries, a.width, threadIdx.x);
  }
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < tiles) bring_keys(i);
    copies_commit();
  }

  float grad_q[Width / 8][4] = {};
  for (int i = 0; i < tiles; ++i) {
    copies_wait<kStages - 2>();
    block_sync();  // as in the forward pass
    if (i + kStages - 1 < tiles) bring_keys(i + kStages - 1);
    copies_commit();
    if (i * kKeys < warp_bound) {
      float s[kKeys / 8][4] = {}, grad_p[kKeys / 8][4] = {};
      multiply_rows<Product, Width, kKeys>(s, q_tile, 16 * group, key_tile(i), 0, a.width, lane);
      multiply_rows<Product, Width, kKeys>(grad_p, grad_tile, 16 * group, value_tile(i), 0, a.width, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int ahead = visible[half] - i * kKeys - 2 * (lane % 4);
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j) {
            const float p = power_of_two(s[n][j] * (a.scale * kLog2E) - lse[half]);
            s[n][j] = 8 * n + (j & 1) < ahead ? p * (grad_p[n][j] - delta[half]) : 0.f;
          }
      }
      multiply_columns<Product, Width, kKeys, Width>(grad_q, s, key_tile(i), 0, 0, a.width, lane);
    }
  }
  copies_wait<0>();
  const float factor[2] = {a.scale, a.scale};
  const RowBlock here(a, kRows);
  write_rows<T, Width>(rows_of<T>(a.grad_q, here.stream, here.head), grad_q, factor, here.first_row + 16 * group,
                       a.queries, a.width, q_tile, 16 * group, lane);
}

// Keys are taken by pairs of warps, 16 keys each: one warp of a pair makes dV, the other dK.
template <class T, int Width>
struct KeyGradientShape {
  static constexpr int kRowBytes = Width * static_cast<int>(sizeof(T));
  static constexpr int kFit = 8192 / kRowBytes;
  static constexpr int kRows = kFit > 32 ? 32 : kFit < 16 ? 16 : kFit;  // of a tile
  static constexpr int kStages = kRowBytes <= 256 ? 3 : 2;
  static constexpr int kPairsFit = (92160 - 2 * kStages * kRows * kRowBytes) / (32 * kRowBytes);
  static constexpr int kPairs = kPairsFit >= 4 ? 4 : kPairsFit >= 2 ? 2 : 1;
  static constexpr int kKeys = 16 * kPairs, kThreads = 64 * kPairs;
  static constexpr int kBlocks = sizeof(T) == 2 && Width <= 128 ? 2 : 1;
  static constexpr int kExchange = 16 * kRows;  // floats that a pair hands over

  // Of each row of a tile: how many keys it sees from the block's first one on, the log of its softmax's denominator
  // (of powers of two), delta.
  struct Facts {
    int ahead[kRows];
    float lse[kRows], delta[kRows];
  };
  static constexpr int kSharedBytes = (2 * kStages * kRows + 2 * kKeys) * kRowBytes +
                                      kStages * static_cast<int>(sizeof(Facts)) +
                                      kPairs * kExchange * static_cast<int>(sizeof(float)) + 16;
};

// Which keys of which (stream, head of keys) a block works on.
struct KeyBlock {
  int stream, kv_head, first_key, heads;  // heads that share its keys

  __device__ __forceinline__ KeyBlock(const BestowAttention& a, int keys) {
    const int number = block_number(), pairs = a.batch * a.kv_heads, pair = number % pairs;
    stream = pair / a.kv_heads, kv_head = pair % a.kv_heads, first_key = number / pairs * keys;
    heads = a.heads / a.kv_heads;
  }
};

// dV = P^T dO and dK = scale * dS^T Q, computed on the transposed scores: rows of an accumulator are keys. The warp of
// dV makes P and hands it to the warp of dK, which has meanwhile made V dO^T. A tile of rows none of which sees the
// block's first key is never loaded; a pair whose own keys are not seen skips the products.
template <class T, int Width>
__global__ void __launch_bounds__(KeyGradientShape<T, Width>::kThreads, KeyGradientShape<T, Width>::kBlocks)
    staircase_key_gradient(const BestowAttention a) {
  using Shape = KeyGradientShape<T, Width>;
  using Product = ProductOf<T>;
  constexpr int kRows = Shape::kRows, kKeys = Shape::kKeys, kThreads = Shape::kThreads, kStages = Shape::kStages;
  using Facts = typename Shape::Facts;
  const int lane = threadIdx.x % 32;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kRows * Shape::kRowBytes;
  const auto q_tile = [&](int i) { return Tile<T, Width>{memory + i * 2 * kTileBytes}; };
  const auto grad_tile = [&](int i) { return Tile<T, Width>{memory + (i * 2 + 1) * kTileBytes}; };
  const Tile<T, Width> k_tile{memory + 2 * kStages * kTileBytes};
  const Tile<T, Width> v_tile{k_tile.base + kKeys * Shape::kRowBytes};
  Facts* facts = reinterpret_cast<Facts*>(v_tile.base + kKeys * Shape::kRowBytes);
  float* exchanges = reinterpret_cast<float*>(facts + kStages);
  // Where the block is lies in shared memory: registers are full.
  KeyBlock& at = *reinterpret_cast<KeyBlock*>(exchanges + Shape::kPairs * Shape::kExchange);
  if (threadIdx.x == 0) at = KeyBlock(a, kKeys);
  block_sync();

  // The first row, of those from `row` on, whose tile has one that sees the block's first key. Four tiles are asked at
  // once: memory is far.
  const auto next_tile = [&](int row) {
    for (; row < a.queries; row += 4 * kRows) {
      bool sees[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) sees[i] = lane < kRows && seen(a, at.stream, row + i * kRows + lane) > at.first_key;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (any_lane(sees[i])) return row + i * kRows;
    }
    return row;
  };
  const auto bring_rows = [&](int head, int first, int buffer) {
    const int stream = at.stream, who = thread_number();
    bring<kRows, kThreads>(q_tile(buffer), rows_of<T>(a.q, stream, head), first, a.queries, a.width, who);
    bring<kRows, kThreads>(grad_tile(buffer), rows_of<T>(a.grad_out, stream, head), first, a.queries, a.width, who);
    Facts& fact = facts[buffer];
    if (who < kRows) {
      const int r = who, sees = seen(a, stream, first + r);
      const int64_t line = (static_cast<int64_t>(stream) * a.heads + head) * a.queries + first + r;
      fact.ahead[r] = sees - at.first_key;
      fact.lse[r] = sees > 0 ? a.lse[line] * kLog2E : 0.f;
      fact.delta[r] = sees > 0 ? a.delta[line] : 0.f;
    }
  };

  // Heads of the group one after the other; each meets the same rows.
  bring<kKeys, kThreads>(k_tile, rows_of<T>(a.k, at.stream, at.kv_head), at.first_key, a.keys, a.width, threadIdx.x);
  bring<kKeys, kThreads>(v_tile, rows_of<T>(a.v, at.stream, at.kv_head), at.first_key, a.keys, a.width, threadIdx.x);
  int row = next_tile(0), left = row < a.queries ? at.heads : 0, waiting = 0;  // heads, tiles
  const auto bring_next = [&](int buffer) {
    if (left > 0) {
      bring_rows((at.kv_head + 1) * at.heads - left, row, buffer);
      row = next_tile(row + kRows), ++waiting;
      if (row >= a.queries && --left > 0) row = next_tile(0);
    }
    copies_commit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) bring_next(i);

  float grad[Width / 8][4] = {};  // of values or of keys
  for (int buffer = 0; waiting > 0; buffer = buffer + 1 < kStages ? buffer + 1 : 0) {
    copies_wait<kStages - 2>();
    block_sync();  // the tile is here, and the one before, whose place the next one takes, has been read by all
    bring_next(buffer > 0 ? buffer - 1 : kStages - 1);
    --waiting;
    const Facts& fact = facts[buffer];
    const int thread = thread_number(), lane = thread % 32, keys = thread / 64 * 16;
    float* exchange = exchanges + thread / 64 * Shape::kExchange;
    if (any_lane(lane < kRows && fact.ahead[lane] > keys)) {
      float s[kRows / 8][4] = {};
      if (thread / 32 % 2) {
        multiply_rows<Product, Width, kRows, 4>(s, v_tile, keys, grad_tile(buffer), 0, a.width, lane);
        pair_sync(thread / 64);
#pragma unroll
        for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float p = exchange[(4 * n + j) * 32 + lane], delta = fact.delta[8 * n + 2 * (lane % 4) + (j & 1)];
            // Selected, not multiplied: keys that nobody sees may hold anything.
            s[n][j] = p > 0.f ? p * (s[n][j] - delta) : 0.f;
          }
        multiply_columns<Product, Width, kRows, Width>(grad, s, q_tile(buffer), 0, 0, a.width, lane);
      } else {
        multiply_rows<Product, Width, kRows, 4>(s, k_tile, keys, q_tile(buffer), 0, a.width, lane);
#pragma unroll
        for (int n = 0; n < kRows / 8; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int r = 8 * n + 2 * (lane % 4) + (j & 1), key = keys + lane / 4 + 8 * (j / 2);
            const float p = power_of_two(s[n][j] * (a.scale * kLog2E) - fact.lse[r]);
            s[n][j] = key < fact.ahead[r] ? p : 0.f;
            exchange[(4 * n + j) * 32 + lane] = s[n][j];
          }
        pair_sync(thread / 64);
        multiply_columns<Product, Width, kRows, Width>(grad, s, grad_tile(buffer), 0, 0, a.width, lane);
      }
    }
  }
  copies_wait<0>();
  block_sync();  // also where no row sees a key: their tiles have come, and what is written takes their place
  const int thread = thread_number(), keys = thread / 64 * 16, makes_keys = thread / 32 % 2;
  const float factor = makes_keys ? a.scale : 1.f, factors[2] = {factor, factor};
  // Each warp of a pair alone has read the 16 rows of keys or values that its gradient passes through.
  const Tile<T, Width> own{k_tile.base + makes_keys * kKeys * Shape::kRowBytes};
  write_rows<T, Width>(rows_of<T>(makes_keys ? a.grad_k : a.grad_v, at.stream, at.kv_head), grad, factors,
                       at.first_key + keys, a.keys, a.width, own, keys, thread % 32);
}

}  // namespace bestow
