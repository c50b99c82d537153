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
    load_matrices(a, tile.address(lane & 15, lane >> 4, row, depth / 8));
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
    load_matrices(m, tile.address((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1, row, depth / 8));
    b[0][0] = m[0], b[0][1] = m[1], b[1][0] = m[2], b[1][1] = m[3];
  }
  // Two right factors: the tile's rows [depth, depth + 16), columns [column, column + 16). Goes with accumulators_to_a.
  template <int Width>
  static __device__ __forceinline__ void load_b_of_columns(B (&b)[2], Tile<T, Width> tile, int depth, int column,
                                                           int lane) {
    A m;
    load_matrices_transposed(m, tile.address(lane & 15, lane >> 4, depth, column / 8));
    b[0][0] = m[0], b[0][1] = m[1], b[1][0] = m[2], b[1][1] = m[3];
  }
  // A left factor that is transposed: its rows are the tile's columns [column, column + 16), its columns the tile's
  // rows [depth, depth + 16).
  template <int Width>
  static __device__ __forceinline__ void load_a_of_columns(A& a, Tile<T, Width> tile, int depth, int column, int lane) {
    load_matrices_transposed(a, tile.address((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1, depth, column / 8));
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

// The products below have no branch between their instructions where elements are 16 bits: what one waits for, the
// others fill. Columns of a tile from `width` on are zeros, which cost time in heads of odd widths and change nothing.
template <class Product>
constexpr bool kInOnePiece = sizeof(typename Product::Element) == 2;

// c (16 x Columns) += rows [row, row + 16) of `left` times the transposed rows [begin, begin + Columns) of `right`.
// Steps is how many are written out without a branch: fewer need fewer registers.
template <class Product, int Width, int Columns, int Steps = Width / Product::kDepth>
__device__ __forceinline__ void multiply_rows(float (&c)[Columns / 8][4], Tile<typename Product::Element, Width> left,
                                              int row, Tile<typename Product::Element, Width> right, int begin,
                                              int width, int lane) {
  // Plain multiply-adds are so many instructions that two steps hide their latency; written out whole they would fill
  // the instruction cache, and half of the time of a build.
  constexpr int kWrittenOut = kInOnePiece<Product> ? Steps : 2;
#pragma unroll kWrittenOut
  for (int depth = 0; depth < Width; depth += Product::kDepth) {
    if (!kInOnePiece<Product> && depth >= width) break;
    typename Product::A a;
    Product::load_a(a, left, row, depth, lane);
#pragma unroll
    for (int n = 0; n < Columns; n += 16) {
      typename Product::B b[2];
      Product::load_b_of_rows(b, right, begin + n, depth, lane);
      Product::multiply(c[n / 8], a, b[0]);
      Product::multiply(c[n / 8 + 1], a, b[1]);
    }
  }
}

// c (16 x Columns) += p (16 x Depth) times rows [begin, begin + Depth), columns [column, column + Columns) of `right`.
template <class Product, int Width, int Depth, int Columns>
__device__ __forceinline__ void multiply_columns(float (&c)[Columns / 8][4], const float (&p)[Depth / 8][4],
                                                 Tile<typename Product::Element, Width> right, int begin, int column,
                                                 int width, int lane) {
#pragma unroll
  for (int d = 0; d < Depth; d += Product::kDepth) {
    typename Product::A a;
    Product::accumulators_to_a(a, &p[d / 8]);
#pragma unroll
    for (int n = 0; n < Columns; n += 16) {
      if (!kInOnePiece<Product> && column + n >= width) break;
      typename Product::B b[2];
      Product::load_b_of_columns(b, right, begin + d, column + n, lane);
      Product::multiply(c[n / 8], a, b[0]);
      Product::multiply(c[n / 8 + 1], a, b[1]);
    }
  }
}

// Writes an accumulator (16 x Width) times `factor` (of the lane's two rows) to rows [row, row + 16) below `limit`: by
// way of the rows [place, place + 16) of a tile that only this warp still uses, so that memory is written in whole
// chunks.
template <class T, int Width>
__device__ __forceinline__ void write_rows(Rows<T> to, const float (&c)[Width / 8][4], const float (&factor)[2],
                                           int row, int limit, int width, Tile<T, Width> tile, int place, int lane) {
  using Shape = Tile<T, Width>;
  warp_sync();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      const int at = 8 * n + 2 * (lane % 4);
      T* pair = tile.chunk(place + lane / 4 + 8 * half, at / Shape::kPerChunk) + at % Shape::kPerChunk;
      const float low = c[n][2 * half] * factor[half], high = c[n][2 * half + 1] * factor[half];
      if constexpr (sizeof(T) == 2)
        *reinterpret_cast<uint32_t*>(pair) = pack<T>(low, high);
      else
        pair[0] = low, pair[1] = high;
    }
  warp_sync();
  // A row's chunks are taken by as many lanes, or by all lanes in turns.
  constexpr unsigned kAside = Shape::kChunks > 32 ? Shape::kChunks / 32 : 1,
                     kAtOnce = Shape::kChunks > 32 ? 1 : 32 / Shape::kChunks;
  const int down = static_cast<unsigned>(lane) / Shape::kChunks, chunk = static_cast<unsigned>(lane) % Shape::kChunks;
  T* out = to.data + (row + down) * to.stride + chunk * Shape::kPerChunk;
#pragma unroll
  for (unsigned i = 0; i < 16; i += kAtOnce)
#pragma unroll
    for (unsigned n = 0; n < kAside; ++n)
      if (row + down + static_cast<int>(i) < limit && (chunk + static_cast<int>(32 * n)) * Shape::kPerChunk < width)
        copy_chunk(out + i * to.stride + 32 * n * Shape::kPerChunk, tile.chunk(place + down + i, chunk + 32 * n));
}

}  // namespace bestow
