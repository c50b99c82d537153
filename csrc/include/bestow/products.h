// Products of small matrices that are the inner loops of staircase attention: rows times panels of columns, with the
// sums in registers, and the packing that makes such panels.
#pragma once

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

constexpr int64_t kChunk = 96;  // keys whose panels stay in the caches while all rows pass over them
static_assert(kChunk % (kTileVecs * kLanes) == 0, "whole tiles");

// ---- products ----

struct Plain {  // one float per multiplication
  static inline Vec step(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
struct Pairs {  // a lane holds two bfloat16 numbers; their bits travel as a float's
  static inline Vec step(Vec a, Vec b, Vec c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};
#endif

// C = A B, or C += A B: (rows, depth) times (depth, columns).
struct Product {
  const float* a;
  int64_t a_row, a_step;  // strides of A over rows and depth
  const float* b;
  int64_t b_step, b_vec;  // strides of B over depth, and from one vector of columns to the next
  float* c;
  int64_t c_row;
  int64_t depth, vecs;
};

template <class How, bool kAdd, int kRows, int kVecs>
inline void tile(const Product& p, int64_t at) {
  const float* a[kRows];
  Vec c[kRows][kVecs];
  float* out = p.c + at * kLanes;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    a[r] = p.a + r * p.a_row;
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) c[r][j] = zero();
  }
  const float* b = p.b + at * p.b_vec;
  const int64_t b_step = p.b_step, b_vec = p.b_vec, a_step = p.a_step, depth = p.depth;
  int64_t at_a = 0;
#pragma GCC unroll kTileSteps
  for (int64_t k = 0; k < depth; ++k, b += b_step, at_a += a_step) {
    Vec columns[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) columns[j] = load(b + j * b_vec);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec x = splat(a[r][at_a]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) c[r][j] = How::step(x, columns[j], c[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      float* to = out + r * p.c_row + j * kLanes;
      store(to, kAdd ? add(load(to), c[r][j]) : c[r][j]);
    }
  }
}

// How many of the vectors that are left the next tile takes. One vector alone leaves the multipliers half idle: the
// last four are taken as two and two.
inline int64_t next_vecs(int64_t left) { return kTileVecs == 3 && left == 4 ? 2 : least(kTileVecs, left); }

template <class How, bool kAdd, int kRows>
inline void stripe(const Product& p) {
  for (int64_t at = 0, vecs; at < p.vecs; at += vecs) {
    vecs = next_vecs(p.vecs - at);
    if (vecs == kTileVecs) {
      tile<How, kAdd, kRows, kTileVecs>(p, at);
    } else if (vecs == 2) {
      tile<How, kAdd, kRows, 2>(p, at);
    } else {
      tile<How, kAdd, kRows, 1>(p, at);
    }
  }
}

// Rows of a product whose one vector of columns would leave the multipliers idle with fewer.
constexpr int kTallRows = 8;

template <class How, bool kAdd>
void multiply(int64_t rows, const Product& p) {
  if (kTileRows < kTallRows && rows > kTileRows) {
    if (rows == kTallRows) return tile<How, kAdd, kTallRows, 1>(p, 0);
    multiply<How, kAdd>(kTileRows, p);
    Product rest = p;
    rest.a += kTileRows * p.a_row, rest.c += kTileRows * p.c_row;
    return multiply<How, kAdd>(rows - kTileRows, rest);
  }
  switch (rows) {
    case 1:
      return stripe<How, kAdd, 1>(p);
    case 2:
      return stripe<How, kAdd, 2>(p);
    case 3:
      return stripe<How, kAdd, 3>(p);
    case 4:
      return stripe<How, kAdd, 4>(p);
  }
  if constexpr (kTileRows == 8) {
    switch (rows) {
      case 5:
        return stripe<How, kAdd, 5>(p);
      case 6:
        return stripe<How, kAdd, 6>(p);
      case 7:
        return stripe<How, kAdd, 7>(p);
      case 8:
        return stripe<How, kAdd, 8>(p);
    }
  }
}

// The same in pieces of the depth: the rounding errors of long sums stay those of short ones.
constexpr int64_t kDepth = 128;

template <class How>
void multiply_deep(int64_t rows, Product p) {
  int64_t left = p.depth;
  p.depth = least(left, kDepth);
  multiply<How, false>(rows, p);
  while ((left -= p.depth) > 0) {
    p.a += p.depth * p.a_step, p.b += p.depth * p.b_step;
    p.depth = least(left, kDepth);
    multiply<How, true>(rows, p);
  }
}

// ---- packing ----

// rows (n, depth) -> panels [n / kLanes][depth][kLanes], rows beyond n as 0.
template <class T>
void pack_panels(const T* rows, int64_t row, int64_t n, int64_t depth, float* panels) {
  for (int64_t i = 0; i < n; i += kLanes, panels += depth * kLanes) {
    for (int64_t d = 0; d < depth; d += kLanes) {
      const int64_t wide = least(kLanes, depth - d);
      Vec x[kLanes];
      if (i + kLanes <= n && wide == kLanes) {  // nearly always: no lane has to be asked for
        for (int r = 0; r < kLanes; ++r) x[r] = load(rows + (i + r) * row + d);
        for (int r = 0; r < kLanes; ++r) __builtin_prefetch(rows + (i + kLanes + r) * row + d);
        transpose(x);
        for (int r = 0; r < kLanes; ++r) store(panels + (d + r) * kLanes, x[r]);
        continue;
      }
      for (int r = 0; r < kLanes; ++r) {
        const T* from = rows + (i + r) * row + d;
        x[r] = i + r >= n ? zero() : wide == kLanes ? load(from) : load_first(from, wide);
      }
      transpose(x);
      for (int r = 0; r < wide; ++r) store(panels + (d + r) * kLanes, x[r]);
    }
  }
}

// rows (n, width) -> dense float rows of `padded` columns, columns beyond width as 0.
template <class T>
void pack_rows(const T* rows, int64_t row, int64_t n, int64_t width, float* dense, int64_t padded) {
  for (int64_t i = 0; i < n; ++i, rows += row, dense += padded) {
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) store(dense + d, load(rows + d));
    if (d < width) store(dense + d, load_first(rows + d, width - d));
  }
}

// What a stage of a kernel reads: rows where they lie when they can be used so, a dense float copy otherwise. Rows far
// apart are copied too: strides of a power of two crowd into few lines of the caches.
template <class T>
const float* dense_rows(const T* rows, int64_t row, int64_t n, int64_t width, int64_t padded, float* copy) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (row == padded && width == padded) return rows;
  }
  pack_rows(rows, row, n, width, copy, padded);
  return copy;
}

// rows (n, width) -> panels [width / kLanes][kChunk][kLanes], columns beyond width as 0.
template <class T>
void pack_columns(const T* rows, int64_t row, int64_t n, int64_t width, float* panels) {
  for (int64_t i = 0; i < n; ++i, rows += row, panels += kLanes) {
    float* to = panels;
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes, to += kChunk * kLanes) store(to, load(rows + d));
    if (d < width) store(to, load_first(rows + d, width - d));
  }
}

}  // namespace bestow::BESTOW_ISA
