// How the numbers of one product travel through the attention passes: as floats, or as pairs of bfloat16 numbers where
// the CPU multiplies those (FormOf). A pair has the size of a float and travels as one.
#pragma once

#include "bestow/staircase.h"

namespace bestow::BESTOW_ISA {

static_assert(kChunk % 2 == 0 && kBand % 2 == 0 && kTileRows % 2 == 0, "whole pairs of keys and of rows");

// The right side of a product over rows, with its strides from one row (or pair of rows) to the next and from one
// vector of columns to the next.
struct Columns {
  const float* at;
  int64_t step, vec;
};

template <class T>
struct Floats {
  using How = Plain;
  static constexpr int64_t kTogether = 1;  // numbers in the room of a float
  // Room that n numbers take, side by side or one under the other.
  static int64_t depth(int64_t n) { return n; }
  static int64_t row(int64_t width) { return round_up(width, kLanes); }
  static void pack_query(const T* q, int64_t width, float* to) { pack_rows(q, width, 1, width, to, width); }
  // Rows for the left side of a product, row(width) apart: where they lie if that will do, else in the copy.
  static const float* rows(const T* x, int64_t row, int64_t n, int64_t width, float* copy) {
    return dense_rows(x, row, n, width, Floats::row(width), copy);
  }
  // The right side whose depth is D: panels [n / kLanes][depth(width)][kLanes].
  static void panels(const T* x, int64_t row, int64_t n, int64_t width, float*, float* to) {
    pack_panels(x, row, n, width, to);
  }
  // The right side whose depth is rows: where they lie if that will do, else n of them packed into the copy,
  // [width / kLanes][depth(kChunk)][kLanes]. With vectors of eight they never do: three of each of 96 rows that are a
  // power of two apart find no room in the nearest cache, and the copy costs less.
  static Columns columns(const T* x, int64_t row, int64_t n, int64_t width, float* copy) {
    if constexpr (sizeof(T) == sizeof(float) && kLanes != 8) {
      if (row == width && width % kLanes == 0) return {x, row, kLanes};
    }
    pack_columns(x, row, n, width, copy);
    return {copy, kLanes, kChunk * kLanes};
  }
  // kLanes numbers of keys j and j + 1, for a product over keys; and of one key from row i on, for one over rows. What
  // they take the place of has been read.
  static void keep(float* column, int64_t j, Vec even, Vec odd) {
    store(column + j * kBand, even), store(column + (j + 1) * kBand, odd);
  }
  static void keep_row(float* key, int64_t i, Vec x) { store(key + i, x); }
};

template <class T>
struct FormOf {
  using type = Floats<T>;
};

#if defined(__AVX512BF16__)

// Two rows of bfloat16 -> one row of pairs, (even row, odd row) in each lane.
inline Vec pair_up(__m256i even, __m256i odd) {
  const __m512i low = _mm512_cvtepu16_epi32(even), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
  return _mm512_castsi512_ps(_mm512_or_si512(low, high));
}
inline __m256i bits_of(const BFloat16* p, int64_t n) {
  if (n >= kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_maskz_loadu_epi16(first(n), p);
}

struct PairsOfBFloat16 {
  using How = Pairs;
  static constexpr int64_t kTogether = 2;
  static int64_t depth(int64_t n) { return (n + 1) / 2; }  // an odd number of them ends in half a pair
  static int64_t row(int64_t width) { return depth(width); }
  // Pairs along D lie in memory as they are wanted.
  static void pack_query(const BFloat16* q, int64_t width, float* to) {
    to[depth(width) - 1] = 0.0f;
    std::memcpy(to, q, width * sizeof(BFloat16));
  }
  static const float* rows(const BFloat16* x, int64_t row, int64_t n, int64_t width, float* copy) {
    for (int64_t i = 0; i < n; ++i) pack_query(x + i * row, width, copy + i * depth(width));
    return copy;
  }
  static void panels(const BFloat16* x, int64_t row, int64_t n, int64_t width, float* some, float* to) {
    const int64_t size = depth(width);
    for (int64_t i = 0; i < n; i += kLanes, to += kLanes * size) {
      const int64_t count = least(kLanes, n - i);
      pack_panels(rows(x + i * row, row, count, width, some), size, count, size, to);
    }
  }
  static Columns columns(const BFloat16* x, int64_t row, int64_t n, int64_t width, float* copy) {
    float* pairs = copy;
    for (int64_t i = 0; i < n; i += 2, x += 2 * row, pairs += kLanes) {
      float* to = pairs;
      for (int64_t d = 0; d < width; d += kLanes, to += kChunk / 2 * kLanes) {
        const __m256i even = bits_of(x + d, width - d);
        store(to, pair_up(even, i + 1 < n ? bits_of(x + row + d, width - d) : _mm256_setzero_si256()));
      }
    }
    return {copy, kLanes, kChunk / 2 * kLanes};
  }
  // Row j / 2 is read before it is written, and so are the first halves of rows.
  static void keep(float* column, int64_t j, Vec even, Vec odd) {
    store(column + j / 2 * kBand, pair_up(rounded(even), rounded(odd)));
  }
  static void keep_row(float* key, int64_t i, Vec x) { store(reinterpret_cast<BFloat16*>(key) + i, x); }
};

template <>
struct FormOf<BFloat16> {
  using type = PairsOfBFloat16;
};

#endif

}  // namespace bestow::BESTOW_ISA
