// 16-row matrix products of one warp, the same face for 16-bit elements and for float.
//
// In every product, lane l holds of an accumulator (16 x 8) the elements (l / 4, 2 (l % 4)), one to the right of it,
// and the same two eight rows below. kDepth is how many columns of A (rows of B) one instruction contracts.
#pragma once
#include "bestow/tile.cuh"

namespace bestow {

// bf16 or fp16 with float accumulators.
template <class T>
struct HalfProduct {
  using Element = T;
  static constexpr int kDepth = 16;
  using A = uint32_t[4];
  using B = uint32_t[2];

  // Rows [row, row + 16), columns [depth, depth + 16) of a tile.
  template <int Width>
  static __device__ __forceinline__ void load_a(A& a, Tile<T, Width> tile, int row, int depth, int lane) {
    load_matrices(a, tile.chunk(row + (lane & 15), depth / 8 + (lane >> 4)));
  }
  // An accumulator pair (16 x 16) becomes the left factor of the next product.
  static __device__ __forceinline__ void accumulators_to_a(A& a, const float (*c)[4]) {
    a[0] = pack<T>(c[0][0], c[0][1]);
    a[1] = pack<T>(c[0][2], c[0][3]);
    a[2] = pack<T>(c[1][0], c[1][1]);
    a[3] = pack<T>(c[1][2], c[1][3]);
  }
  // Two right factors whose columns are the tile's rows [row, row + 16): products with the transposed tile.
  template <int Width>
  static __device__ __forceinline__ void load_b_of_rows(B (&b)[2], Tile<T, Width> tile, int row, int depth, int lane) {
    A m;
    load_matrices(m, tile.chunk(row + (lane & 7) + ((lane >> 4) << 3), depth / 8 + ((lane >> 3) & 1)));
    b[0][0] = m[0], b[0][1] = m[1], b[1][0] = m[2], b[1][1] = m[3];
  }
  // Two right factors: the tile's rows [depth, depth + 16), columns [column, column + 16). Goes with accumulators_to_a.
  template <int Width>
  static __device__ __forceinline__ void load_b_of_columns(B (&b)[2], Tile<T, Width> tile, int depth, int column,
                                                           int lane) {
    A m;
    load_matrices_transposed(m, tile.chunk(depth + (lane & 15), column / 8 + (lane >> 4)));
    b[0][0] = m[0], b[0][1] = m[1], b[1][0] = m[2], b[1][1] = m[3];
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const A& a, const B& b) { mma_16x8x16<T>(c, a, b); }
};

// float by plain multiply-adds: three TF32 products were tried in emulation, their error is more than twice PyTorch's.
// A lane computes its own four elements, so it holds whole rows of A and whole columns of B.
struct FloatProduct {
  using Element = float;
  static constexpr int kDepth = 8;
  using A = float[2][8];  // rows l / 4 and l / 4 + 8
  using B = float[2][8];  // columns 2 (l % 4) and the next

  template <int Width>
  static __device__ __forceinline__ void load_row(float (&to)[8], Tile<float, Width> tile, int row, int depth) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      memcpy(to + 4 * half, __builtin_assume_aligned(tile.chunk(row, depth / 4 + half), 16), 16);
  }
  template <int Width>
  static __device__ __forceinline__ void load_a(A& a, Tile<float, Width> tile, int row, int depth, int lane) {
    load_row(a[0], tile, row + lane / 4, depth);
    load_row(a[1], tile, row + lane / 4 + 8, depth);
  }
  // The four lanes of a row tell each other their columns. Each hears them in its own order, beginning with its own: a
  // sum does not mind, and load_b_of_columns takes the rows in the same order.
  static __device__ __forceinline__ void accumulators_to_a(A& a, const float (*c)[4]) {
#pragma unroll
    for (int turn = 0; turn < 4; ++turn)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][2 * turn + i % 2] = turn == 0 ? c[0][i] : shuffle_xor(c[0][i], turn);
  }
  template <int Width>
  static __device__ __forceinline__ void load_b_of_rows(B (&b)[2], Tile<float, Width> tile, int row, int depth,
                                                        int lane) {
#pragma unroll
    for (int n = 0; n < 4; ++n) load_row(b[n / 2][n % 2], tile, row + 8 * (n / 2) + 2 * (lane % 4) + n % 2, depth);
  }
  template <int Width>
  static __device__ __forceinline__ void load_b_of_columns(B (&b)[2], Tile<float, Width> tile, int depth, int column,
                                                           int lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int row = depth + 2 * ((lane % 4) ^ (k / 2)) + k % 2;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int at = column + 8 * n + 2 * (lane % 4);
        const float* pair = tile.chunk(row, at / 4) + at % 4;
        b[n][0][k] = pair[0], b[n][1][k] = pair[1];
      }
    }
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const A& a, const B& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float sum = 0.f;  // short sums added up lose less than one long sum
#pragma unroll
      for (int k = 0; k < 8; ++k) sum += a[i / 2][k] * b[i % 2][k];
      c[i] += sum;
    }
  }
};

template <class T>
using ProductOf = std::conditional_t<std::is_same_v<T, float>, FloatProduct, HalfProduct<T>>;

// c (16 x Columns) += rows [row, row + 16) of `left` times the transposed rows [0, columns) of `right`, over `width`.
template <class Product, int Width, int Columns>
__device__ __forceinline__ void multiply_rows(float (&c)[Columns / 8][4], Tile<typename Product::Element, Width> left,
                                              int row, Tile<typename Product::Element, Width> right, int columns,
                                              int width, int lane) {
  // Plain multiply-adds are so many instructions that two steps hide their latency; written out whole they would fill
  // the instruction cache, and half of the time of a build.
  constexpr int kSteps = Width / Product::kDepth, kWrittenOut = sizeof(typename Product::Element) == 4 ? 2 : kSteps;
#pragma unroll kWrittenOut
  for (int depth = 0; depth < Width; depth += Product::kDepth) {
    if (depth >= width) break;
    typename Product::A a;
    Product::load_a(a, left, row, depth, lane);
#pragma unroll
    for (int n = 0; n < Columns; n += 16) {
      if (n >= columns) break;
      typename Product::B b[2];
      Product::load_b_of_rows(b, right, n, depth, lane);
      Product::multiply(c[n / 8], a, b[0]);
      Product::multiply(c[n / 8 + 1], a, b[1]);
    }
  }
}

// c (16 x Columns) += p (16 x Depth) times rows [0, depth) and columns [column, column + Columns) of `right`.
template <class Product, int Width, int Depth, int Columns>
__device__ __forceinline__ void multiply_columns(float (&c)[Columns / 8][4], const float (&p)[Depth / 8][4],
                                                 Tile<typename Product::Element, Width> right, int depth, int column,
                                                 int width, int lane) {
#pragma unroll
  for (int d = 0; d < Depth; d += Product::kDepth) {
    if (d >= depth) break;
    typename Product::A a;
    Product::accumulators_to_a(a, &p[d / 8]);
#pragma unroll
    for (int n = 0; n < Columns; n += 16) {
      if (column + n >= width) break;
      typename Product::B b[2];
      Product::load_b_of_columns(b, right, d, column + n, lane);
      Product::multiply(c[n / 8], a, b[0]);
      Product::multiply(c[n / 8 + 1], a, b[1]);
    }
  }
}

// Writes an accumulator row pair (16 x Columns) times `factor` (one per row) to rows [row, row + 16) below `limit`.
template <class T, int Columns>
__device__ __forceinline__ void write_rows(Rows<T> to, const float (&c)[Columns / 8][4], const float (&factor)[2],
                                           int row, int limit, int column, int width, int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + lane / 4 + 8 * half;
    if (r >= limit) continue;
    T* line = to.data + r * to.stride;
#pragma unroll
    for (int n = 0; n < Columns / 8; ++n) {
      const int at = column + 8 * n + 2 * (lane % 4);
      if (at >= width) break;
      const float low = c[n][2 * half] * factor[half], high = c[n][2 * half + 1] * factor[half];
      if constexpr (sizeof(T) == 2)
        *reinterpret_cast<uint32_t*>(line + at) = pack<T>(low, high);
      else
        line[at] = low, line[at + 1] = high;
    }
  }
}

}  // namespace bestow
