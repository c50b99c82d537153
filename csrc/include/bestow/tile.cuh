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

  // The same of a lane's own row and one of the first two chunks, in the rows from `first` (a multiple of 8) and the
  // chunks from `index` (even) on. A tile begins at a multiple of its row's bytes, so that index and row, the same for
  // all lanes, meet an address that each lane computes once.
  __device__ __forceinline__ SharedAddress address(int row, int half, int first, int index) const {
    return ((shared_address(base) + row * kRowBytes + ((half ^ (row & 7)) << 4)) ^ (index << 4)) + first * kRowBytes;
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

// Threads 0 ... Crew - 1 (`who`) bring rows [first, first + Count) of `from`; rows from `limit` on and columns from
// `width` on become zeros and are never read.
template <unsigned Count, unsigned Crew, class T, int Width>
__device__ __forceinline__ void bring(Tile<T, Width> to, Rows<T> from, int first, int limit, int width, unsigned who) {
  constexpr unsigned kChunks = Tile<T, Width>::kChunks;
  static_assert(Count * kChunks % Crew == 0 && (Crew % kChunks == 0 || kChunks % Crew == 0), "whole turns");
  const int column = static_cast<int>(who % kChunks), row = static_cast<int>(who / kChunks);
  const T* source = from.data + (first + row) * from.stride + column * Tile<T, Width>::kPerChunk;
#pragma unroll
  for (unsigned i = 0; i < Count * kChunks / Crew; ++i) {
    const int down = i * Crew / kChunks, right = Crew < kChunks ? i * Crew % kChunks : 0;
    const bool valid = first + row + down < limit && (column + right) * Tile<T, Width>::kPerChunk < width;
    copy_async(to.chunk(row + down, column + right), source + down * from.stride + right * Tile<T, Width>::kPerChunk,
               valid);
  }
}

// How many keys row `row` of stream `stream` sees, whatever was handed in: never below 0 or beyond the keys there are.
__device__ __forceinline__ int seen(const BestowAttention& a, int stream, int row) {
  // Read in any case, so that several such questions wait together.
  const int there = row < a.queries ? row : a.queries - 1;
  const int visible = a.visible[static_cast<int64_t>(stream) * a.queries + there];
  return row >= a.queries || visible < 0 ? 0 : visible > a.keys ? a.keys : visible;
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
