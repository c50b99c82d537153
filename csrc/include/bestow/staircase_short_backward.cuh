// Backward pass where all query rows of a (stream, head) fit one block: keys and values stream past once, and dQ, dK
// and dV are made together. No atomics here either: each element is written by exactly one thread.
#pragma once
#include "bestow/staircase_forward.cuh"

namespace bestow {

template <class T, int Width>
struct ShortGradientShape {
  static_assert(sizeof(T) == 2, "plain multiply-adds have no use for it");
  static constexpr int kRowBytes = Width * 2;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16 * kWarps;
  static constexpr int kKeys = 64, kStep = 32, kStages = 2;
  static constexpr int kBlocks = Width <= 64 ? 2 : 1;

  // Of each row: how many keys it sees, the log of its softmax's denominator (of powers of two), delta; and the most
  // that any of 16 rows sees.
  struct Facts {
    int sees[kRows], bound[kWarps];
    float lse[kRows], delta[kRows];
  };
  static constexpr int kSharedBytes =
      (2 * kRows + 2 * kStages * kKeys) * kRowBytes + 2 * kRows * kKeys * 2 + static_cast<int>(sizeof(Facts));
};

// delta of 16 rows from `first` on, as in staircase_delta, by one warp: a row is read by as many lanes as it has
// chunks.
template <class T, int Width>
__device__ __forceinline__ void deltas(float* to, const BestowAttention& a, Rows<T> out, Rows<T> grad, int first,
                                       int lane) {
  constexpr int kLanes = Width / 8, kAtOnce = 32 / kLanes;
  const int column = lane % kLanes * 8;
#pragma unroll
  for (int i = 0; i < 16; i += kAtOnce) {
    // What is not there is read elsewhere and does not count: so all reads go out together.
    const int row = first + i + lane / kLanes, there = row < a.queries ? row : a.queries - 1;
    alignas(16) T mine[8], theirs[8];
    copy_chunk(mine, out.data + there * out.stride + (column < a.width ? column : 0));
    copy_chunk(theirs, grad.data + there * grad.stride + (column < a.width ? column : 0));
    float sum = 0.f;
#pragma unroll
    for (int d = 0; d < 8; ++d) sum += widen(mine[d]) * widen(theirs[d]);
    if (row >= a.queries || column >= a.width) sum = 0.f;
#pragma unroll
    for (int mask = kLanes / 2; mask > 0; mask >>= 1) sum += shuffle_xor(sum, mask);
    if (lane % kLanes == 0) to[i + lane / kLanes] = sum;
  }
}

// Per tile of keys: warps make P and dS of their own rows, leave them in shared memory and add dS K to their dQ; then
// each makes dV or dK of 16 keys from the rows that see them.
template <class T, int Width>
__global__ void __launch_bounds__(ShortGradientShape<T, Width>::kThreads, ShortGradientShape<T, Width>::kBlocks)
    staircase_short_gradient(const BestowAttention a) {
  using Shape = ShortGradientShape<T, Width>;
  using Product = HalfProduct<T>;
  using Facts = typename Shape::Facts;
  constexpr int kRows = Shape::kRows, kKeys = Shape::kKeys, kStep = Shape::kStep, kThreads = Shape::kThreads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own = 16 * row_group<Shape::kWarps>(warp);  // the first of the warp's rows
  const int stream = block_number() / a.heads, head = block_number() % a.heads;

  unsigned char* memory = shared_memory();
  constexpr int kTileBytes = kKeys * Shape::kRowBytes;
  const Tile<T, Width> q_tile{memory}, grad_tile{memory + kRows * Shape::kRowBytes};
  unsigned char* stages = memory + 2 * kRows * Shape::kRowBytes;
  const auto key_tile = [&](int i) { return Tile<T, Width>{stages + (i & 1) * 2 * kTileBytes}; };
  const auto value_tile = [&](int i) { return Tile<T, Width>{stages + ((i & 1) * 2 + 1) * kTileBytes}; };
  const Tile<T, kKeys> p_tile{stages + 2 * Shape::kStages * kTileBytes}, ds_tile{p_tile.base + kRows * kKeys * 2};
  Facts& facts = *reinterpret_cast<Facts*>(ds_tile.base + kRows * kKeys * 2);

  const Rows<T> grads = rows_of<T>(a.grad_out, stream, head);
  bring<kRows, kThreads>(q_tile, rows_of<T>(a.q, stream, head), 0, a.queries, a.width, threadIdx.x);
  bring<kRows, kThreads>(grad_tile, grads, 0, a.queries, a.width, threadIdx.x);
  copies_commit();
  const int64_t line = (static_cast<int64_t>(stream) * a.heads + head) * a.queries;
  const int mine = lane < 16 ? seen(a, stream, own + lane) : 0;
  const int warp_bound = warp_max(mine);
  if (lane < 16)
    facts.sees[own + lane] = mine, facts.lse[own + lane] = mine > 0 ? a.lse[line + own + lane] * kLog2E : 0.f;
  if (lane == 0) facts.bound[own / 16] = warp_bound;
  block_sync();
  int bound = 0;
#pragma unroll
  for (int i = 0; i < Shape::kWarps; ++i) bound = facts.bound[i] > bound ? facts.bound[i] : bound;

  const Rows<T> keys = rows_of<T>(a.k, stream, head), values = rows_of<T>(a.v, stream, head);
  const auto bring_keys = [&](int i) {
    if (i * kKeys < bound) {
      bring<kKeys, kThreads>(key_tile(i), keys, i * kKeys, bound, a.width, threadIdx.x);
      bring<kKeys, kThreads>(value_tile(i), values, i * kKeys, bound, a.width, threadIdx.x);
    }
    copies_commit();
  };
  bring_keys(0);
  deltas<T, Width>(facts.delta + own, a, rows_of<T>(a.out, stream, head), grads, own, lane);

  float grad_q[Width / 8][4] = {};
  for (int i = 0; i * kKeys < a.keys; ++i) {
    copies_wait<0>();
    block_sync();  // tile i is here; what was made of tile i - 1, and the place of its keys and values, is no longer
                   // needed
    bring_keys(i + 1);
#pragma unroll 1
    for (int step = 0; step < kKeys; step += kStep) {
      const int first = i * kKeys + step;
      if (first >= warp_bound) break;
      float s[kStep / 8][4] = {}, grad_p[kStep / 8][4] = {};
      multiply_rows<Product, Width, kStep>(s, q_tile, own, key_tile(i), step, a.width, lane);
      multiply_rows<Product, Width, kStep>(grad_p, grad_tile, own, value_tile(i), step, a.width, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = own + lane / 4 + 8 * half, ahead = facts.sees[row] - first - 2 * (lane % 4);
        const float lse = facts.lse[row], delta = facts.delta[row];
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j) {
            const float p = power_of_two(s[n][j] * (a.scale * kLog2E) - lse);
            const bool sees = 8 * n + (j & 1) < ahead;
            s[n][j] = sees ? p : 0.f;
            grad_p[n][j] = sees ? p * (grad_p[n][j] - delta) : 0.f;
          }
          *reinterpret_cast<uint32_t*>(p_tile.chunk(row, step / 8 + n) + 2 * (lane % 4)) =
              pack<T>(s[n][2 * half], s[n][2 * half + 1]);
          *reinterpret_cast<uint32_t*>(ds_tile.chunk(row, step / 8 + n) + 2 * (lane % 4)) =
              pack<T>(grad_p[n][2 * half], grad_p[n][2 * half + 1]);
        }
      }
      multiply_columns<Product, Width, kStep, Width>(grad_q, grad_p, key_tile(i), step, 0, a.width, lane);
    }
    block_sync();  // P and dS are there, keys and values have been read

    const bool makes_keys = warp >= Shape::kWarps / 2;
    const int group = 16 * (warp % (Shape::kWarps / 2)), first = i * kKeys + group;
    // The left and the right factor lie side by side with those of the other gradient.
    const Tile<T, kKeys> left{p_tile.base + makes_keys * kRows * kKeys * 2};
    const Tile<T, Width> right{grad_tile.base - makes_keys * kRows * Shape::kRowBytes};
    float grad[Width / 8][4] = {};
    // Of eight times 16 rows, those that see the first of the keys.
    unsigned groups = which_lanes(lane < Shape::kWarps && facts.bound[lane % Shape::kWarps] > first);
#pragma unroll 1
    for (; groups != 0; groups &= groups - 1) {
      const int row = 16 * lowest_bit(groups);
      typename Product::A left_rows;
      Product::load_a_of_columns(left_rows, left, row, group, lane);
#pragma unroll
      for (int n = 0; n < Width; n += 16) {
        typename Product::B b[2];
        Product::load_b_of_columns(b, right, row, n, lane);
        Product::multiply(grad[n / 8], left_rows, b[0]);
        Product::multiply(grad[n / 8 + 1], left_rows, b[1]);
      }
    }
    const float factor = makes_keys ? a.scale : 1.f, factors[2] = {factor, factor};
    const Tile<T, Width> place{value_tile(i).base - makes_keys * kTileBytes};
    write_rows<T, Width>(rows_of<T>(makes_keys ? a.grad_k : a.grad_v, stream, head), grad, factors, first, a.keys,
                         a.width, place, group, lane);
  }
  copies_wait<0>();
  block_sync();  // the queries' place is free
  const float factors[2] = {a.scale, a.scale};
  write_rows<T, Width>(rows_of<T>(a.grad_q, stream, head), grad_q, factors, own, a.queries, a.width, q_tile, own, lane);
}

}  // namespace bestow
