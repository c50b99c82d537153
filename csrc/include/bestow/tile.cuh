// Rows of one (stream, head) in shared memory, their way there, and who sees what.
#pragma once
#include "bestow/device.cuh"

namespace bestow {

// N x Width elements. The 16-byte chunks of a row are permuted by the row's number, so that the eight rows a fragment
// touches lie in different banks without padding.
template <class T, int Width>
struct Tile {
  using Element = T;
  static constexpr int kRowBytes = Width * sizeof(T);
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kPerChunk = 16 / sizeof(T);
  static_assert(kChunks >= 8, "the permutation needs rows of at least 128 bytes");

  unsigned char* base;

  __device__ __forceinline__ T* chunk(int row, int index) const {
    return reinterpret_cast<T*>(base + row * kRowBytes + ((index ^ (row & 7)) << 4));
  }
};

// One (stream, head) of a tensor: row n begins at data + n * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
};

template <class T>
__device__ __forceinline__ Rows<T> rows_of(const BestowTensor& tensor, int stream, int head) {
  return {static_cast<T*>(tensor.data) + stream * tensor.batch + head * tensor.head, tensor.row};
}

// Threads `who`, `who + crew`, ... bring rows [first, first + count) of `from`; rows from `limit` on and columns from
// `width` on become zeros and are never read.
template <class T, int Width>
__device__ __forceinline__ void bring(Tile<T, Width> to, Rows<T> from, int first, int count, int limit, int width,
                                      int who, int crew) {
  using Shape = Tile<T, Width>;
  for (int i = who; i < count * Shape::kChunks; i += crew) {
    const int row = i / Shape::kChunks, index = i % Shape::kChunks;
    const bool valid = first + row < limit && index * Shape::kPerChunk < width;
    const T* source = from.data + (valid ? (first + row) * from.stride + index * Shape::kPerChunk : 0);
    copy_async(to.chunk(row, index), source, valid);
  }
}

// How many keys row `row` of stream `stream` sees, whatever was handed in: never below 0 or beyond the keys there are.
__device__ __forceinline__ int seen(const BestowAttention& a, int stream, int row) {
  if (row >= a.queries) return 0;
  const int visible = a.visible[static_cast<int64_t>(stream) * a.queries + row];
  return visible < 0 ? 0 : visible > a.keys ? a.keys : visible;
}

__device__ __forceinline__ int warp_max(int value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask >>= 1) {
    const int other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float quad_max(float value) {
  value = fmaxf(value, shuffle_xor(value, 1));
  return fmaxf(value, shuffle_xor(value, 2));
}
__device__ __forceinline__ float quad_sum(float value) {
  value += shuffle_xor(value, 1);
  return value + shuffle_xor(value, 2);
}

}  // namespace bestow
