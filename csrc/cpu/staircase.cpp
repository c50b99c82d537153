// Staircase attention on the CPU. Compiled once per instruction set, each time with its own flags and BESTOW_ISA.
//
// One unit of work is a key head of one utterance. Its keys are packed once, into panels of kLanes keys side by side,
// and only as far as some row sees. Then blocks of a few query rows take: scores against the panels, a softmax over
// what each row sees, the product with the values. A block computes up to its own furthest row; nothing is computed for
// frames that no row of the block sees, and no mask exists anywhere.
//
// Where the CPU multiplies pairs of bfloat16 numbers, the forward pass of bfloat16 tensors packs keys and values as
// pairs; everywhere else 16-bit inputs are widened while they are packed, and computing is float.

#include <cmath>

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int64_t kPrefetchRows = 8;
constexpr int64_t kBackwardRows = 64;  // query rows whose weights wait for the products with grad and q

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Hands out pieces of a workspace; with no memory behind it, it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

template <class T>
inline T* row_of(const Rows& x, int64_t b, int64_t h, int64_t n) {
  return static_cast<T*>(x.data) + b * x.batch + h * x.head + n * x.row;
}

inline int64_t seen(const Staircase& p, int64_t b, int64_t u) {
  return most(0, least(p.frames, p.visible[b * p.visible_batch + u * p.visible_row]));
}

inline int64_t furthest(const Staircase& p, int64_t b, int64_t begin, int64_t end) {
  int64_t n = 0;
  for (int64_t u = begin; u < end; ++u) n = most(n, seen(p, b, u));
  return n;
}

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

template <class How, bool kAdd, int kRows>
inline void stripe(const Product& p) {
  int64_t at = 0;
  for (; at + kTileVecs <= p.vecs; at += kTileVecs) tile<How, kAdd, kRows, kTileVecs>(p, at);
  if constexpr (kTileVecs > 2) {
    if (p.vecs - at == 2) {
      tile<How, kAdd, kRows, 2>(p, at);
      return;
    }
  }
  if (at < p.vecs) tile<How, kAdd, kRows, 1>(p, at);
}

template <class How, bool kAdd>
void multiply(int64_t rows, const Product& p) {
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

void multiply_deep(int64_t rows, Product p) {
  int64_t left = p.depth;
  p.depth = least(left, kDepth);
  multiply<Plain, false>(rows, p);
  while ((left -= p.depth) > 0) {
    p.a += p.depth * p.a_step, p.b += p.depth * p.b_step;
    p.depth = least(left, kDepth);
    multiply<Plain, true>(rows, p);
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

template <class T>
void write_row(T* to, const float* from, int64_t width, float factor) {
  const Vec f = splat(factor);
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(to + d, mul(f, load(from + d)));
  if (d < width) store_first(to + d, mul(f, load(from + d)), width - d);
}

template <class T>
void write_zeros(T* to, int64_t count) {
  std::memset(static_cast<void*>(to), 0, count * sizeof(T));
}

// ---- softmax ----

// scores (ld) of one row -> weights e^(scale score - greatest) of the first n, 0 after; returns their sum.
template <class P>
float weigh(const float* scores, P* weights, int64_t n, int64_t ld, float scale, float* greatest_score) {
  const Vec factor = splat(scale);
  Vec top = splat(-INFINITY);
  for (int64_t i = 0; i < n; i += kLanes) top = max(top, keep(mul(factor, load(scores + i)), top, n - i));
  const float peak = greatest(top);
  const Vec shift = splat(-peak);
  Vec total = zero();
  int64_t i = 0;
  for (; i < n; i += kLanes) {
    const Vec x = keep(exp_negative(fma(factor, load(scores + i), shift)), zero(), n - i);
    total = add(total, x);
    store(weights + i, x);
  }
  for (; i < ld; i += kLanes) store(weights + i, zero());
  *greatest_score = peak;
  return sum(total);
}

// ---- forward ----

// A block of rows computes either on floats or on pairs of bfloat16 numbers. Both kinds know how to pack and multiply.
template <class T>
struct FloatBlocks {
  float *panels, *values_copy, *queries, *scores;
  const float* values;
  int64_t width, padded;

  FloatBlocks(Arena& arena, const Forward& p) : width(p.width), padded(round_up(p.width, kLanes)) {
    const int64_t frames = round_up(p.frames, kLanes);
    panels = arena.take<float>(frames * width);
    values_copy = arena.take<float>(frames * padded);
    queries = arena.take<float>(kTileRows * padded);
    scores = arena.take<float>(kTileRows * frames);
  }

  void pack(const T* k, int64_t k_row, const T* v, int64_t v_row, int64_t n) {
    pack_panels(k, k_row, n, width, panels);
    values = dense_rows(v, v_row, n, width, padded, values_copy);
  }

  void attend(const T* q, int64_t q_row, int64_t rows, int64_t n, const int64_t* sees, float scale, float* out,
              float* totals, float* peaks) {
    const float* from = dense_rows(q, q_row, rows, width, padded, queries);
    const int64_t ld = round_up(n, kLanes);
    multiply_deep(rows, {from, padded, 1, panels, kLanes, width * kLanes, scores, ld, width, ld / kLanes});
    for (int64_t r = 0; r < rows; ++r) {
      totals[r] = weigh(scores + r * ld, scores + r * ld, sees[r], ld, scale, peaks + r);
    }
    multiply_deep(rows, {scores, ld, 1, values, padded, kLanes, out, padded, n, padded / kLanes});
  }
};

#if defined(__AVX512BF16__)

// Two rows of bfloat16 -> one row of pairs, (even row, odd row) in each lane. Either may be missing (null).
inline Vec pair_up(__m256i even, __m256i odd) {
  const __m512i low = _mm512_cvtepu16_epi32(even), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
  return _mm512_castsi512_ps(_mm512_or_si512(low, high));
}
inline __m256i bits_of(const BFloat16* p, int64_t n) {
  if (n >= kLanes) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_maskz_loadu_epi16(first(n), p);
}

// rows (n, width) -> [n / 2][padded] pairs of rows.
void pack_row_pairs(const BFloat16* rows, int64_t row, int64_t n, int64_t width, float* pairs, int64_t padded) {
  for (int64_t i = 0; i < n; i += 2, rows += 2 * row, pairs += padded) {
    for (int64_t d = 0; d < padded; d += kLanes) {
      const __m256i even = bits_of(rows + d, width - d);
      store(pairs + d, pair_up(even, i + 1 < n ? bits_of(rows + row + d, width - d) : _mm256_setzero_si256()));
    }
  }
}

struct PairBlocks {
  float *panels, *values, *queries, *scores;
  BFloat16* weights;
  int64_t width, padded, depth;  // depth: pairs along D; an odd width ends in half a pair

  PairBlocks(Arena& arena, const Forward& p)
      : width(p.width), padded(round_up(p.width, kLanes)), depth((p.width + 1) / 2) {
    const int64_t frames = round_up(p.frames, kLanes);
    panels = arena.take<float>(frames * depth);
    values = arena.take<float>(frames / 2 * padded);
    queries = arena.take<float>(kTileRows * depth);
    scores = arena.take<float>(kTileRows * frames);
    weights = arena.take<BFloat16>(kTileRows * frames);
  }

  void pack(const BFloat16* k, int64_t k_row, const BFloat16* v, int64_t v_row, int64_t n) {
    // Pairs along D lie in memory as they are wanted: packing is the float one, on 32-bit lanes.
    for (int64_t i = 0; i < n; i += kLanes) {
      for (int64_t d = 0; d < depth; d += kLanes) {
        Vec x[kLanes];
        for (int r = 0; r < kLanes; ++r) x[r] = i + r < n ? pairs_at(k + (i + r) * k_row, d) : zero();
        transpose(x);
        for (int r = 0; r < kLanes && d + r < depth; ++r) store(panels + (i * depth + (d + r) * kLanes), x[r]);
      }
    }
    pack_row_pairs(v, v_row, n, width, values, padded);
  }

  // kLanes pairs of one row from pair d on.
  Vec pairs_at(const BFloat16* row, int64_t d) const {
    const int64_t left = width - 2 * d;
    if (left >= 2 * kLanes) return _mm512_loadu_ps(row + 2 * d);
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1u << left) - 1, row + 2 * d));
  }

  void attend(const BFloat16* q, int64_t q_row, int64_t rows, int64_t n, const int64_t* sees, float scale, float* out,
              float* totals, float* peaks) {
    for (int64_t r = 0; r < rows; ++r) {
      if (width % 2) queries[r * depth + depth - 1] = 0.0f;
      std::memcpy(queries + r * depth, q + r * q_row, width * sizeof(BFloat16));
    }
    const int64_t ld = round_up(n, kLanes);
    multiply<Pairs, false>(rows, {queries, depth, 1, panels, kLanes, depth * kLanes, scores, ld, depth, ld / kLanes});
    for (int64_t r = 0; r < rows; ++r) {
      totals[r] = weigh(scores + r * ld, weights + r * ld, sees[r], ld, scale, peaks + r);
    }
    const float* a = reinterpret_cast<const float*>(weights);
    multiply<Pairs, false>(rows, {a, ld / 2, 1, values, padded, kLanes, out, padded, (n + 1) / 2, padded / kLanes});
  }
};

#endif

// Where a unit's query rows are: key head `group` of utterance `b`, positions begin ... end.
struct Unit {
  int64_t b, group, begin, end;
  Unit(const Forward& p, int64_t unit) {
    const int64_t split = unit % p.splits, pair = unit / p.splits;
    b = pair / p.kv_heads, group = pair % p.kv_heads;
    const int64_t share = round_up((p.positions + p.splits - 1) / p.splits, kTileRows);
    begin = least(p.positions, split * share), end = least(p.positions, begin + share);
  }
};

template <class T, class Blocks>
void forward_packed(const Forward& p, const Unit& at, Arena arena) {
  Blocks blocks(arena, p);
  float* out = arena.take<float>(kTileRows * blocks.padded);
  const int64_t n_all = furthest(p, at.b, at.begin, at.end), share = p.heads / p.kv_heads;
  if (n_all > 0) {
    blocks.pack(row_of<T>(p.k, at.b, at.group, 0), p.k.row, row_of<T>(p.v, at.b, at.group, 0), p.v.row, n_all);
  }
  for (int64_t h = at.group * share; h < (at.group + 1) * share; ++h) {
    float* lse = p.lse + (at.b * p.heads + h) * p.positions;
    for (int64_t u = at.begin; u < at.end; u += kTileRows) {
      const int64_t rows = least(kTileRows, at.end - u), n = furthest(p, at.b, u, u + rows);
      int64_t sees[kTileRows];
      float totals[kTileRows], peaks[kTileRows];
      for (int64_t r = 0; r < rows; ++r) sees[r] = seen(p, at.b, u + r);
      if (n > 0) {
        blocks.attend(row_of<T>(p.q, at.b, h, u), p.q.row, rows, n, sees, p.scale, out, totals, peaks);
      }
      for (int64_t r = 0; r < rows; ++r) {
        T* to = row_of<T>(p.out, at.b, h, u + r);
        if (sees[r] == 0) {
          write_zeros(to, p.width);
          lse[u + r] = INFINITY;
        } else {
          write_row(to, out + r * blocks.padded, p.width, 1.0f / totals[r]);
          lse[u + r] = peaks[r] + std::log(totals[r]);
        }
      }
    }
  }
}

// A few rows: keys and values are read once, where they lie. Needs a width of whole vectors.
template <class T, int kVecs>
inline void mix_values(const T* v, int64_t row, int64_t n, const float* weights, float factor, T* to) {
  Vec c[kVecs];
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) c[j] = zero();
  for (int64_t i = 0; i < n; ++i, v += row) {
    const Vec w = splat(weights[i]);
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) c[j] = fma(w, load(v + j * kLanes), c[j]);
    const char* ahead = reinterpret_cast<const char*>(v + kPrefetchRows * row);
#pragma GCC unroll 8
    for (size_t line = 0; line < kVecs * kLanes * sizeof(T); line += 64) __builtin_prefetch(ahead + line);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) store(to + j * kLanes, mul(splat(factor), c[j]));
}

template <class T>
void forward_few(const Forward& p, const Unit& at, Arena arena) {
  const int64_t ld = round_up(p.frames, kLanes), share = p.heads / p.kv_heads, rows = at.end - at.begin;
  float* queries = arena.take<float>(kFewRows * p.width);
  float* scores = arena.take<float>(kFewRows * ld);
  const T *k = row_of<T>(p.k, at.b, at.group, 0), *v = row_of<T>(p.v, at.b, at.group, 0);
  const int64_t count = rows * share, n_all = furthest(p, at.b, at.begin, at.end);
  for (int64_t i = 0; i < count; ++i) {
    const T* q = row_of<T>(p.q, at.b, at.group * share + i / rows, at.begin + i % rows);
    pack_rows(q, p.width, 1, p.width, queries + i * p.width, p.width);
  }
  constexpr int kKeys = 4;  // as many chains of additions run side by side
  for (int64_t j = 0; j < n_all; j += kKeys) {
    const T* key[kKeys];
    for (int r = 0; r < kKeys; ++r) {
      key[r] = k + least(j + r, n_all - 1) * p.k.row;
      const char* ahead = reinterpret_cast<const char*>(key[r] + kPrefetchRows * p.k.row);
      for (size_t line = 0; line < p.width * sizeof(T); line += 64) __builtin_prefetch(ahead + line);
    }
    for (int64_t i = 0; i < count; ++i) {
      Vec c[kKeys] = {zero(), zero(), zero(), zero()};
      for (int64_t d = 0; d < p.width; d += kLanes) {
        const Vec x = load(queries + i * p.width + d);
#pragma GCC unroll 4
        for (int r = 0; r < kKeys; ++r) c[r] = fma(x, load(key[r] + d), c[r]);
      }
      for (int r = 0; r < kKeys; ++r) scores[i * ld + j + r] = sum(c[r]);  // ld has room for the last four
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t h = at.group * share + i / rows, u = at.begin + i % rows, n = seen(p, at.b, u);
    T* to = row_of<T>(p.out, at.b, h, u);
    float peak, *lse = p.lse + (at.b * p.heads + h) * p.positions + u;
    if (n == 0) {
      write_zeros(to, p.width);
      *lse = INFINITY;
      continue;
    }
    const float total = weigh(scores + i * ld, scores + i * ld, n, ld, p.scale, &peak), factor = 1.0f / total;
    *lse = peak + std::log(total);
    int64_t d = 0;
    const float* weights = scores + i * ld;
    for (; d + 8 * kLanes <= p.width; d += 8 * kLanes) mix_values<T, 8>(v + d, p.v.row, n, weights, factor, to + d);
    for (; d + 4 * kLanes <= p.width; d += 4 * kLanes) mix_values<T, 4>(v + d, p.v.row, n, weights, factor, to + d);
    for (; d < p.width; d += kLanes) mix_values<T, 1>(v + d, p.v.row, n, weights, factor, to + d);
  }
}

inline bool few(const Forward& p) { return p.positions * (p.heads / p.kv_heads) <= kFewRows && p.width % kLanes == 0; }

template <class T, class Blocks>
size_t forward_space(const Forward& p) {
  Arena arena{nullptr};
  if (few(p)) {
    arena.take<float>(kFewRows * p.width);
    arena.take<float>(kFewRows * round_up(p.frames, kLanes));
  } else {
    const Blocks blocks(arena, p);
    arena.take<float>(kTileRows * blocks.padded);
  }
  return arena.used;
}

template <class T, class Blocks>
void forward_as(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Unit at(p, unit);
    const Arena arena{static_cast<char*>(workspace)};
    if (few(p)) {
      forward_few<T>(p, at, arena);
    } else {
      forward_packed<T, Blocks>(p, at, arena);
    }
  }
}

#if defined(__AVX512BF16__)
using BFloat16Blocks = PairBlocks;
#else
using BFloat16Blocks = FloatBlocks<BFloat16>;
#endif

size_t forward_bytes(const Forward& p) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return forward_space<float, FloatBlocks<float>>(p);
    case Scalar::kBFloat16:
      return forward_space<BFloat16, BFloat16Blocks>(p);
    default:
      return forward_space<Half, FloatBlocks<Half>>(p);
  }
}

void forward(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return forward_as<float, FloatBlocks<float>>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return forward_as<BFloat16, BFloat16Blocks>(p, begin, end, workspace);
    default:
      return forward_as<Half, FloatBlocks<Half>>(p, begin, end, workspace);
  }
}

// ---- backward ----

// With weights P = e^(scale q k - lse) and dP = grad v:  dS = scale P (dP - sum_j P dP),
// dq = dS k, dk = dS^T q, dv = P^T grad.
template <class T>
struct BackwardUnit {
  const Backward& p;
  int64_t padded, frames;
  float *key_panels, *value_panels, *key_copy, *query_copy, *grad_copy, *weights, *slopes, *dq, *dk, *dv;

  BackwardUnit(Arena& arena, const Backward& problem)
      : p(problem), padded(round_up(p.width, kLanes)), frames(round_up(p.frames, kLanes)) {
    key_panels = arena.take<float>(frames * p.width);
    value_panels = arena.take<float>(frames * p.width);
    key_copy = arena.take<float>(frames * padded);
    dk = arena.take<float>(frames * padded);
    dv = arena.take<float>(frames * padded);
    query_copy = arena.take<float>(kBackwardRows * padded);
    grad_copy = arena.take<float>(kBackwardRows * padded);
    weights = arena.take<float>(kBackwardRows * frames);
    slopes = arena.take<float>(kBackwardRows * frames);
    dq = arena.take<float>(kTileRows * padded);
  }

  void run(int64_t b, int64_t group) {
    const int64_t share = p.heads / p.kv_heads, n = furthest(p, b, 0, p.positions);
    const T *k = row_of<T>(p.k, b, group, 0), *v = row_of<T>(p.v, b, group, 0);
    pack_panels(k, p.k.row, n, p.width, key_panels);
    pack_panels(v, p.v.row, n, p.width, value_panels);
    const float* keys = dense_rows(k, p.k.row, n, p.width, padded, key_copy);
    write_zeros(dk, n * padded);
    write_zeros(dv, n * padded);
    for (int64_t h = group * share; h < (group + 1) * share; ++h) {
      for (int64_t u = 0; u < p.positions; u += kBackwardRows) {
        block(b, h, u, least(kBackwardRows, p.positions - u), keys);
      }
    }
    T *to_k = row_of<T>(p.dk, b, group, 0), *to_v = row_of<T>(p.dv, b, group, 0);
    for (int64_t i = 0; i < n; ++i) {
      write_row(to_k + i * p.dk.row, dk + i * padded, p.width, 1.0f);
      write_row(to_v + i * p.dv.row, dv + i * padded, p.width, 1.0f);
    }
    write_zeros(to_k + n * p.dk.row, (p.frames - n) * p.width);
    write_zeros(to_v + n * p.dv.row, (p.frames - n) * p.width);
  }

  void block(int64_t b, int64_t h, int64_t u, int64_t rows, const float* keys) {
    const int64_t n = furthest(p, b, u, u + rows), ld = round_up(n, kLanes);
    if (n == 0) {
      for (int64_t r = 0; r < rows; ++r) write_zeros(row_of<T>(p.dq, b, h, u + r), p.width);
      return;
    }
    const float* queries = dense_rows(row_of<T>(p.q, b, h, u), p.q.row, rows, p.width, padded, query_copy);
    const float* grads = dense_rows(row_of<T>(p.grad, b, h, u), p.grad.row, rows, p.width, padded, grad_copy);
    for (int64_t r = 0; r < rows; r += kTileRows) {
      few_rows(b, h, u + r, least(kTileRows, rows - r), queries + r * padded, grads + r * padded, weights + r * ld,
               slopes + r * ld, ld, keys);
    }
    // Rows before the first that sees key j have nothing for it and for later keys.
    int64_t skip = 0;
    for (int64_t j = 0; j < n; j += kTileRows) {
      while (seen(p, b, u + skip) <= j) ++skip;
      const int64_t count = least(kTileRows, n - j), from = skip * ld + j, depth = rows - skip, vecs = padded / kLanes;
      multiply<Plain, true>(
          count, {weights + from, 1, ld, grads + skip * padded, padded, kLanes, dv + j * padded, padded, depth, vecs});
      multiply<Plain, true>(
          count, {slopes + from, 1, ld, queries + skip * padded, padded, kLanes, dk + j * padded, padded, depth, vecs});
    }
  }

  // Weights and slopes (ld each) of one block's next rows, and these rows' dq.
  void few_rows(int64_t b, int64_t h, int64_t u, int64_t rows, const float* q, const float* grad, float* weight,
                float* slope, int64_t ld, const float* keys) {
    const int64_t n = furthest(p, b, u, u + rows), near = round_up(n, kLanes);
    multiply_deep(rows, {q, padded, 1, key_panels, kLanes, p.width * kLanes, weight, ld, p.width, near / kLanes});
    multiply_deep(rows, {grad, padded, 1, value_panels, kLanes, p.width * kLanes, slope, ld, p.width, near / kLanes});
    const float* lse = p.lse + (b * p.heads + h) * p.positions + u;
    for (int64_t r = 0; r < rows; ++r) softmax_slopes(weight + r * ld, slope + r * ld, seen(p, b, u + r), ld, lse[r]);
    if (n > 0) {
      multiply_deep(rows, {slope, ld, 1, keys, padded, kLanes, dq, padded, n, padded / kLanes});
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* to = row_of<T>(p.dq, b, h, u + r);
      if (seen(p, b, u + r) == 0) {
        write_zeros(to, p.width);
      } else {
        write_row(to, dq + r * padded, p.width, 1.0f);
      }
    }
  }

  void softmax_slopes(float* weight, float* slope, int64_t n, int64_t ld, float lse) const {
    const Vec factor = splat(p.scale), shift = splat(-lse);
    Vec dots = zero(), total = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec x = keep(exp_negative(fma(factor, load(weight + i), shift)), zero(), n - i);
      store(weight + i, x);
      total = add(total, x);
      dots = add(dots, keep(mul(x, load(slope + i)), zero(), n - i));
    }
    // lse is one rounded number; what it leaves the weights' sum away from 1 would be in every gradient.
    const float correction = 1.0f / sum(total);
    const Vec one = splat(correction), mean = splat(sum(dots) * correction);
    int64_t i = 0;
    for (; i < n; i += kLanes) {
      const Vec w = mul(one, load(weight + i)), x = mul(mul(factor, w), sub(load(slope + i), mean));
      store(weight + i, w);
      store(slope + i, keep(x, zero(), n - i));
    }
    for (; i < ld; i += kLanes) store(weight + i, zero()), store(slope + i, zero());
  }
};

template <class T>
size_t backward_space(const Backward& p) {
  Arena arena{nullptr};
  const BackwardUnit<T> unit(arena, p);
  return arena.used;
}

template <class T>
void backward_as(const Backward& p, int64_t begin, int64_t end, void* workspace) {
  Arena arena{static_cast<char*>(workspace)};
  BackwardUnit<T> unit(arena, p);
  for (int64_t i = begin; i < end; ++i) unit.run(i / p.kv_heads, i % p.kv_heads);
}

size_t backward_bytes(const Backward& p) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return backward_space<float>(p);
    case Scalar::kBFloat16:
      return backward_space<BFloat16>(p);
    default:
      return backward_space<Half>(p);
  }
}

void backward(const Backward& p, int64_t begin, int64_t end, void* workspace) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return backward_as<float>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return backward_as<BFloat16>(p, begin, end, workspace);
    default:
      return backward_as<Half>(p, begin, end, workspace);
  }
}

#define BESTOW_TEXT(x) #x
#define BESTOW_NAME(x) BESTOW_TEXT(x)

}  // namespace

// few_rows.cpp
void round_rows(const float* x, int64_t rows, int64_t inputs, int16_t* out, float* steps);
void few_rows(const FewRows& p, int64_t begin, int64_t end);

extern const Kernels kKernels;
const Kernels kKernels = {
    BESTOW_NAME(BESTOW_ISA), forward_bytes, forward, backward_bytes, backward, round_rows, few_rows};

}  // namespace bestow::BESTOW_ISA
