// Staircase attention on the CPU. Compiled once per instruction set, each time with its own flags and BESTOW_ISA.
//
// One unit of work is a key head of one utterance. Its keys and values are packed chunk after chunk, into panels of
// kLanes columns side by side, and only as far as some row sees. Each chunk meets all query rows that see into it,
// while it is in the caches: scores, one more step of each row's softmax, the product with the values. A slice of a few
// rows computes up to its own furthest row; nothing is computed for frames that no row of it sees, and no mask exists
// anywhere. Where the query rows are few (decoding), keys and values are read as they lie.
//
// Where the CPU multiplies pairs of bfloat16 numbers, the forward pass of bfloat16 tensors packs keys and values as
// pairs; everywhere else 16-bit inputs are widened while they are packed, and computing is float.

#include <cmath>

#include "bestow/cpu.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int64_t kPrefetchRows = 8;
constexpr int64_t kChunk = 96;  // keys whose panels stay in the caches while all rows pass over them
constexpr int64_t kBand = 64;   // query rows whose scores against a chunk are held at a time
static_assert(kChunk % (kTileVecs * kLanes) == 0 && kBand % kTileRows == 0, "whole tiles");
constexpr int64_t kBackwardRows = 64;  // query rows whose weights for all keys are held at a time
static_assert(kBackwardRows <= kChunk, "rows and keys are packed alike");
constexpr int64_t kAskRows = 2;  // rows that each step of the backward pass asks for ahead

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
      for (int r = 0; r < kLanes; ++r) {
        const T* from = rows + (i + r) * row + d;
        x[r] = i + r >= n ? zero() : wide == kLanes ? load(from) : load_first(from, wide);
        __builtin_prefetch(from + kLanes * row);
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

// Asks for rows that will be read soon: memory answers too late for a program that asks when it needs them.
template <class T>
inline void fetch(const T* rows, int64_t row, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; ++i, rows += row) {
    const char* line = reinterpret_cast<const char*>(rows);
    for (size_t at = 0; at < width * sizeof(T); at += 64) __builtin_prefetch(line + at);
  }
}

// Rows wanted soon, asked for a few at a time between other work.
template <class T>
struct Ahead {
  T* next;
  int64_t row, left, width;
  void ask(int64_t count) {
    count = least(count, left);
    fetch(next, row, count, width);
    next += count * row, left -= count;
  }
};

// ---- softmax ----

inline float greatest_score(const float* scores, int64_t n, float scale, float least_known) {
  const Vec factor = splat(scale);
  const int64_t whole = n / kLanes * kLanes;
  Vec top = splat(least_known);
  for (int64_t i = 0; i < whole; i += kLanes) top = max(mul(factor, load(scores + i)), top);
  if (whole < n) top = max(keep(mul(factor, load(scores + whole)), top, n - whole), top);
  return greatest(top);
}

// Scores -> weights e^(scale score - peak) of the first n, 0 after them up to `near`; returns their sum in kLanes
// parts. Weights may take the place of the scores.
template <class W>
inline Vec weigh(const float* scores, W* weights, int64_t n, int64_t near, float scale, float peak) {
  const Vec factor = splat(scale), shift = splat(-peak);
  Vec total = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec x = exp_negative(fma(factor, load(scores + i), shift));
    total = add(total, x);
    store(weights + i, x);
  }
  if (i < n) {
    const Vec x = keep(exp_negative(fma(factor, load(scores + i), shift)), zero(), n - i);
    total = add(total, x);
    store(weights + i, x);
    i += kLanes;
  }
  for (; i < near; i += kLanes) store(weights + i, zero());
  return total;
}

// ---- forward ----

// How the numbers of one product travel: as floats, or as pairs of bfloat16 numbers where the CPU multiplies those.
template <class T>
struct Floats {
  using How = Plain;
  using Weight = float;
  static int64_t depth(int64_t n) { return n; }
  static void pack_query(const T* q, int64_t width, float* to) { pack_rows(q, width, 1, width, to, width); }
  static void pack_keys(const T* k, int64_t row, int64_t n, int64_t width, float* panels) {
    pack_panels(k, row, n, width, panels);
  }
  // rows (n, width) -> panels [width / kLanes][kChunk][kLanes], columns beyond width as 0.
  static void pack_values(const T* v, int64_t row, int64_t n, int64_t width, float* panels) {
    for (int64_t i = 0; i < n; ++i, v += row, panels += kLanes) {
      float* to = panels;
      int64_t d = 0;
      for (; d + kLanes <= width; d += kLanes, to += kChunk * kLanes) store(to, load(v + d));
      if (d < width) store(to, load_first(v + d, width - d));
    }
  }
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
// kLanes pairs, of which the first `left` numbers exist.
inline Vec pairs_of(const BFloat16* p, int64_t left) {
  if (left >= 2 * kLanes) return _mm512_loadu_ps(p);
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1u << left) - 1, p));
}

struct PairsOfBFloat16 {
  using How = Pairs;
  using Weight = BFloat16;
  static int64_t depth(int64_t n) { return (n + 1) / 2; }  // an odd number of them ends in half a pair
  static void pack_query(const BFloat16* q, int64_t width, float* to) {
    to[depth(width) - 1] = 0.0f;
    std::memcpy(to, q, width * sizeof(BFloat16));
  }
  // Pairs along D lie in memory as they are wanted: packing is the float one, on 32-bit lanes.
  static void pack_keys(const BFloat16* k, int64_t row, int64_t n, int64_t width, float* panels) {
    for (int64_t i = 0; i < n; i += kLanes, panels += depth(width) * kLanes) {
      for (int64_t d = 0; d < depth(width); d += kLanes) {
        Vec x[kLanes];
        for (int r = 0; r < kLanes; ++r) x[r] = i + r < n ? pairs_of(k + (i + r) * row + 2 * d, width - 2 * d) : zero();
        transpose(x);
        for (int r = 0; r < kLanes && d + r < depth(width); ++r) store(panels + (d + r) * kLanes, x[r]);
      }
    }
  }
  // rows (n, width) -> panels [width / kLanes][kChunk / 2][kLanes] of pairs of rows.
  static void pack_values(const BFloat16* v, int64_t row, int64_t n, int64_t width, float* panels) {
    for (int64_t i = 0; i < n; i += 2, v += 2 * row, panels += kLanes) {
      float* to = panels;
      for (int64_t d = 0; d < width; d += kLanes, to += kChunk / 2 * kLanes) {
        const __m256i even = bits_of(v + d, width - d);
        store(to, pair_up(even, i + 1 < n ? bits_of(v + row + d, width - d) : _mm256_setzero_si256()));
      }
    }
  }
};

#endif

// Where a unit's query rows are: key head `group` of utterance `b`, positions begin ... end of its heads.
struct Unit {
  int64_t b, group, begin, end;
  Unit(const Forward& p, int64_t unit) {
    const int64_t split = unit % p.splits, pair = unit / p.splits;
    b = pair / p.kv_heads, group = pair % p.kv_heads;
    const int64_t share = round_up((p.positions + p.splits - 1) / p.splits, kTileRows);
    begin = least(p.positions, split * share), end = least(p.positions, begin + share);
  }
};

// The rows of one unit, chunk after chunk of its keys.
template <class T, class Form>
struct ForwardUnit {
  using How = typename Form::How;
  using Weight = typename Form::Weight;
  const Forward& p;
  const int64_t share, most_rows, depth, padded;
  float *keys, *values, *scores, *queries, *sums, *totals, *peaks;
  int64_t* sees;
  Ahead<const T> next_keys, next_values;  // those of the next chunk, while one is computed with

  ForwardUnit(Arena& arena, const Forward& problem)
      : p(problem),
        share(p.heads / p.kv_heads),
        most_rows(share * p.positions),
        depth(Form::depth(p.width)),
        padded(round_up(p.width, kLanes)) {
    keys = arena.take<float>(kChunk * depth);
    values = arena.take<float>(Form::depth(kChunk) * padded);
    scores = arena.take<float>(kBand * kChunk);
    queries = arena.take<float>(most_rows * depth);
    sums = arena.take<float>(most_rows * padded);
    totals = arena.take<float>(most_rows * kLanes);
    peaks = arena.take<float>(most_rows);
    sees = arena.take<int64_t>(most_rows);
  }

  void run(const Unit& at) {
    const int64_t span = at.end - at.begin, rows = share * span;
    int64_t all = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = at.group * share + i / span, u = at.begin + i % span;
      all = most(all, sees[i] = seen(p, at.b, u));
      peaks[i] = -INFINITY;
      Form::pack_query(row_of<T>(p.q, at.b, h, u), p.width, queries + i * depth);
    }
    write_zeros(sums, rows * padded);
    write_zeros(totals, rows * kLanes);
    for (int64_t start = 0; start < all; start += kChunk) {
      const int64_t n = least(kChunk, all - start);
      Form::pack_keys(row_of<T>(p.k, at.b, at.group, start), p.k.row, n, p.width, keys);
      Form::pack_values(row_of<T>(p.v, at.b, at.group, start), p.v.row, n, p.width, values);
      const int64_t next = start + n, more = least(kChunk, all - next);
      next_keys = {row_of<T>(p.k, at.b, at.group, next), p.k.row, more, p.width};
      next_values = {row_of<T>(p.v, at.b, at.group, next), p.v.row, more, p.width};
      for (int64_t i = 0; i < rows; i += kBand) attend(i, least(kBand, rows - i), start);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = at.group * share + i / span, u = at.begin + i % span;
      T* to = row_of<T>(p.out, at.b, h, u);
      float* lse = p.lse + (at.b * p.heads + h) * p.positions + u;
      if (sees[i] == 0) {
        write_zeros(to, p.width);
        *lse = INFINITY;
      } else {
        const float total = sum(load(totals + i * kLanes));
        write_row(to, sums + i * padded, p.width, 1.0f / total);
        *lse = peaks[i] + std::log(total);
      }
    }
  }

  // Folds row i's scores for the chunk into its softmax: they become weights, and what was summed before shrinks to the
  // new peak.
  void weigh_row(int64_t i, float* row, int64_t start, int64_t near) {
    const int64_t n = most(0, least(kChunk, sees[i] - start));
    const float peak = greatest_score(row, n, p.scale, peaks[i]);
    float *total = totals + i * kLanes, *to = sums + i * padded;
    if (peak > peaks[i]) {
      const Vec shrink = exp_negative(splat(peaks[i] - peak));
      store(total, mul(shrink, load(total)));
      for (int64_t d = 0; d < padded; d += kLanes) store(to + d, mul(shrink, load(to + d)));
      peaks[i] = peak;
    }
    store(total, add(load(total), weigh(row, reinterpret_cast<Weight*>(row), n, near, p.scale, peak)));
  }

  // Rows begin ... begin + count meet the chunk of keys from `start` on. A group of panels stays in the nearest cache
  // while all of these rows pass over it.
  void attend(int64_t begin, int64_t count, int64_t start) {
    int64_t near[kBand / kTileRows];  // keys of this chunk that a slice of kTileRows rows goes through
    int64_t all = 0;
    for (int64_t r = 0; r < count; r += kTileRows) {
      int64_t n = 0;
      for (int64_t i = r; i < least(count, r + kTileRows); ++i) n = most(n, sees[begin + i]);
      all = most(all, near[r / kTileRows] = most(0, least(kChunk, n - start)));
    }
    const auto near_of = [&](int64_t r) { return near[r / kTileRows]; };
    for (int64_t at = 0; at < all; at += kTileVecs * kLanes) {
      for (int64_t r = 0; r < count; r += kTileRows) {
        const int64_t left = near_of(r) - at;
        if (left <= 0) continue;
        next_keys.ask(1), next_values.ask(1);
        const int64_t vecs = least(kTileVecs, (left + kLanes - 1) / kLanes);
        multiply_deep<How>(least(kTileRows, count - r),
                           {queries + (begin + r) * depth, depth, 1, keys + at * depth, kLanes, depth * kLanes,
                            scores + r * kChunk + at, kChunk, depth, vecs});
      }
    }
    for (int64_t r = 0; r < count; ++r) weigh_row(begin + r, scores + r * kChunk, start, near_of(r));
    for (int64_t at = 0, vecs; at < padded / kLanes; at += vecs) {
      vecs = next_vecs(padded / kLanes - at);
      for (int64_t r = 0; r < count; r += kTileRows) {
        if (near_of(r) == 0) continue;
        next_keys.ask(1), next_values.ask(1);
        multiply<How, true>(least(kTileRows, count - r),
                            {scores + r * kChunk, kChunk, 1, values + at * Form::depth(kChunk) * kLanes, kLanes,
                             Form::depth(kChunk) * kLanes, sums + (begin + r) * padded + at * kLanes, padded,
                             Form::depth(near_of(r)), vecs});
      }
    }
  }
};

// A few rows: keys and values are read once, where they lie, and all rows use them then. Queries and sums are padded to
// whole vectors.
constexpr int64_t kFewKeys = 8;  // keys that all rows use before the next are read

// scores[i][j] = queries[i] . keys[j] of kRows queries and n keys.
template <class T, int kRows>
inline void score_keys(const float* queries, const T* k, int64_t row, int64_t n, int64_t width, float* scores,
                       int64_t ld) {
  constexpr int kKeys = 4;  // as many chains of additions run side by side, for each row
  const int64_t padded = round_up(width, kLanes), whole = width / kLanes * kLanes;
  for (int64_t j = 0; j < n; j += kKeys) {
    const T* key[kKeys];
    Vec c[kRows][kKeys];
#pragma GCC unroll 4
    for (int x = 0; x < kKeys; ++x) {
      key[x] = k + least(j + x, n - 1) * row;
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) c[r][x] = zero();
    }
    const auto multiply = [&](int64_t d, const auto& part) {
      Vec q[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) q[r] = load(queries + r * padded + d);
#pragma GCC unroll 4
      for (int x = 0; x < kKeys; ++x) {
        const Vec y = part(key[x] + d);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) c[r][x] = fma(q[r], y, c[r][x]);
      }
    };
    for (int64_t d = 0; d < whole; d += kLanes) multiply(d, [](const T* from) { return load(from); });
    if (whole < width) multiply(whole, [&](const T* from) { return load_first(from, width - whole); });
    for (int r = 0; r < kRows; ++r) {
      for (int x = 0; x < kKeys; ++x) scores[r * ld + j + x] = sum(c[r][x]);  // ld has room for the last four
    }
  }
}

// Adds the weighted values of n keys to kVecs vectors of one row's sums.
template <class T, int kVecs>
inline void add_values(const T* v, int64_t row, int64_t n, const float* weights, float* sums) {
  Vec c[kVecs];
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) c[j] = load(sums + j * kLanes);
  for (int64_t i = 0; i < n; ++i, v += row) {
    const Vec w = splat(weights[i]);
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) c[j] = fma(w, load(v + j * kLanes), c[j]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kVecs; ++j) store(sums + j * kLanes, c[j]);
}

// The same for the vector of which only the first `count` numbers are left.
template <class T>
inline void add_last_values(const T* v, int64_t row, int64_t n, int64_t count, const float* weights, float* sums) {
  Vec c = load(sums);
  for (int64_t i = 0; i < n; ++i, v += row) c = fma(splat(weights[i]), load_first(v, count), c);
  store(sums, c);
}

template <class T>
struct FewQueries {
  const Forward& p;
  const int64_t share, ld, padded;
  float *queries, *scores, *sums;

  FewQueries(Arena& arena, const Forward& problem)
      : p(problem),
        share(p.heads / p.kv_heads),
        ld(round_up(p.frames, most(kLanes, kFewKeys))),
        padded(round_up(p.width, kLanes)) {
    queries = arena.take<float>(kFewRows * padded);
    scores = arena.take<float>(kFewRows * ld);
    sums = arena.take<float>(kFewRows * padded);
  }

  void run(const Unit& at) {
    const int64_t span = at.end - at.begin, rows = share * span, width = p.width;
    int64_t sees[kFewRows], all = 0;
    float totals[kFewRows];
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t u = at.begin + i % span;
      all = most(all, sees[i] = seen(p, at.b, u));
      pack_rows(row_of<T>(p.q, at.b, at.group * share + i / span, u), width, 1, width, queries + i * padded, padded);
    }
    const T* k = row_of<T>(p.k, at.b, at.group, 0);
    for (int64_t j = 0; j < all; j += kFewKeys, k += kFewKeys * p.k.row) {
      fetch(k + kPrefetchRows * p.k.row, p.k.row, kFewKeys, width);
      const int64_t n = least(kFewKeys, all - j);
      int64_t i = 0;
      for (; i + 2 <= rows; i += 2)
        score_keys<T, 2>(queries + i * padded, k, p.k.row, n, width, scores + i * ld + j, ld);
      if (i < rows) score_keys<T, 1>(queries + i * padded, k, p.k.row, n, width, scores + i * ld + j, ld);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = at.group * share + i / span, u = at.begin + i % span;
      float* row = scores + i * ld;
      const float peak = greatest_score(row, sees[i], p.scale, -INFINITY);
      totals[i] = sum(weigh(row, row, sees[i], sees[i], p.scale, peak));
      p.lse[(at.b * p.heads + h) * p.positions + u] = sees[i] == 0 ? INFINITY : peak + std::log(totals[i]);
    }
    write_zeros(sums, rows * padded);
    const T* v = row_of<T>(p.v, at.b, at.group, 0);
    for (int64_t j = 0; j < all; j += kFewKeys, v += kFewKeys * p.v.row) {
      fetch(v + kPrefetchRows * p.v.row, p.v.row, kFewKeys, width);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t n = most(0, least(kFewKeys, sees[i] - j));
        const float* weights = scores + i * ld + j;
        float* to = sums + i * padded;
        int64_t d = 0;
        for (; d + 8 * kLanes <= width; d += 8 * kLanes) add_values<T, 8>(v + d, p.v.row, n, weights, to + d);
        for (; d + 4 * kLanes <= width; d += 4 * kLanes) add_values<T, 4>(v + d, p.v.row, n, weights, to + d);
        for (; d + kLanes <= width; d += kLanes) add_values<T, 1>(v + d, p.v.row, n, weights, to + d);
        if (d < width) add_last_values(v + d, p.v.row, n, width - d, weights, to + d);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      T* to = row_of<T>(p.out, at.b, at.group * share + i / span, at.begin + i % span);
      if (sees[i] == 0) {
        write_zeros(to, width);
      } else {
        write_row(to, sums + i * padded, width, 1.0f / totals[i]);
      }
    }
  }
};

inline bool few(const Forward& p) { return p.positions * (p.heads / p.kv_heads) <= kFewRows; }

template <class T, class Form>
size_t forward_space(const Forward& p) {
  Arena arena{nullptr};
  if (few(p)) {
    const FewQueries<T> counted(arena, p);
  } else {
    const ForwardUnit<T, Form> counted(arena, p);
  }
  return arena.used;
}

template <class T, class Form>
void forward_as(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Unit at(p, unit);
    Arena arena{static_cast<char*>(workspace)};
    if (few(p)) {
      FewQueries<T>(arena, p).run(at);
    } else {
      ForwardUnit<T, Form>(arena, p).run(at);
    }
  }
}

#if defined(__AVX512BF16__)
using BFloat16Form = PairsOfBFloat16;
#else
using BFloat16Form = Floats<BFloat16>;
#endif

size_t forward_bytes(const Forward& p) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return forward_space<float, Floats<float>>(p);
    case Scalar::kBFloat16:
      return forward_space<BFloat16, BFloat16Form>(p);
    default:
      return forward_space<Half, Floats<Half>>(p);
  }
}

void forward(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return forward_as<float, Floats<float>>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return forward_as<BFloat16, BFloat16Form>(p, begin, end, workspace);
    default:
      return forward_as<Half, Floats<Half>>(p, begin, end, workspace);
  }
}

// ---- backward ----

// With weights P = e^(scale q k - lse) and dP = grad v:  dS = scale P (dP - sum_j P dP),
// dq = dS k, dk = dS^T q, dv = P^T grad.
//
// A block of query rows meets the keys twice, chunk after chunk: for P and dP, and, when the sums over all keys are
// known, for the gradients. dk and dv begin with the first block that sees as far; later blocks add to them.
template <class T>
struct BackwardUnit {
  const Backward& p;
  const int64_t padded;
  const T *keys, *values;
  Ahead<const T> next_keys, next_values;  // those of the chunk that will be packed next
  int64_t all, packed, summed;  // keys that some row sees; of these the packed ones, and those with sums in dk and dv
  float *key_panels, *value_panels, *key_columns, *dk_sums, *dv_sums, *dk, *dv;
  const float *queries, *grads;  // of one block, as is what follows
  float *query_copy, *grad_copy, *query_columns, *grad_columns, *dq;
  float *weights, *slopes;  // [chunk][row][kChunk]
  float *totals, *dots;     // sums of P and of P dP, in kLanes parts
  int64_t sees[kBackwardRows];

  BackwardUnit(Arena& arena, const Backward& problem) : p(problem), padded(round_up(p.width, kLanes)) {
    const int64_t frames = round_up(p.frames, kChunk);
    key_panels = arena.take<float>(frames * p.width);
    value_panels = arena.take<float>(frames * p.width);
    key_columns = arena.take<float>(frames * padded);
    dk_sums = arena.take<float>(frames * padded);
    dv_sums = arena.take<float>(frames * padded);
    query_copy = arena.take<float>(kBackwardRows * padded);
    grad_copy = arena.take<float>(kBackwardRows * padded);
    query_columns = arena.take<float>(kChunk * padded);
    grad_columns = arena.take<float>(kChunk * padded);
    dq = arena.take<float>(kBackwardRows * padded);
    weights = arena.take<float>(kBackwardRows * frames);
    slopes = arena.take<float>(kBackwardRows * frames);
    totals = arena.take<float>(kBackwardRows * kLanes);
    dots = arena.take<float>(kBackwardRows * kLanes);
  }

  void run(int64_t b, int64_t group) {
    const int64_t share = p.heads / p.kv_heads;
    keys = row_of<T>(p.k, b, group, 0), values = row_of<T>(p.v, b, group, 0);
    all = furthest(p, b, 0, p.positions), packed = 0, summed = 0;
    T *to_k = row_of<T>(p.dk, b, group, 0), *to_v = row_of<T>(p.dv, b, group, 0);
    dk = sums_in(to_k, dk_sums), dv = sums_in(to_v, dv_sums);
    for (int64_t h = group * share; h < (group + 1) * share; ++h) {
      for (int64_t u = 0; u < p.positions; u += kBackwardRows) block(b, h, u, least(kBackwardRows, p.positions - u));
    }
    if (dk == dk_sums) write_sums(to_k, dk);
    if (dv == dv_sums) write_sums(to_v, dv);
    write_zeros(to_k + all * p.width, (p.frames - all) * p.width);
    write_zeros(to_v + all * p.width, (p.frames - all) * p.width);
  }

  // Where the gradients of keys or values grow: at their place when they are floats without padding.
  float* sums_in(T* to, float* sums) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (p.width == padded) return to;
    }
    return sums;
  }

  void write_sums(T* to, const float* sums) const {
    for (int64_t i = 0; i < all; ++i) write_row(to + i * p.width, sums + i * padded, p.width, 1.0f);
  }

  // The first block of rows that gets as far packs a chunk for all of them.
  void pack_next() {
    const int64_t n = least(kChunk, all - packed), next = packed + n, more = least(kChunk, all - next);
    pack_panels(keys + packed * p.k.row, p.k.row, n, p.width, key_panels + packed * p.width);
    pack_panels(values + packed * p.v.row, p.v.row, n, p.width, value_panels + packed * p.width);
    Floats<T>::pack_values(keys + packed * p.k.row, p.k.row, n, p.width, key_columns + packed * padded);
    next_keys = {keys + next * p.k.row, p.k.row, more, p.width};
    next_values = {values + next * p.v.row, p.v.row, more, p.width};
    packed = next;
  }

  void block(int64_t b, int64_t h, int64_t u, int64_t rows) {
    int64_t own = 0;
    for (int64_t r = 0; r < rows; ++r) own = most(own, sees[r] = seen(p, b, u + r));
    if (own > 0) {
      const T *q = row_of<T>(p.q, b, h, u), *grad = row_of<T>(p.grad, b, h, u);
      queries = dense_rows(q, p.q.row, rows, p.width, padded, query_copy);
      grads = dense_rows(grad, p.grad.row, rows, p.width, padded, grad_copy);
      Floats<T>::pack_values(q, p.q.row, rows, p.width, query_columns);
      Floats<T>::pack_values(grad, p.grad.row, rows, p.width, grad_columns);
      write_zeros(dq, rows * padded);
      write_zeros(totals, rows * kLanes);
      write_zeros(dots, rows * kLanes);
      const float* lse = p.lse + (b * p.heads + h) * p.positions + u;
      for (int64_t start = 0; start < own; start += kChunk) {
        if (packed <= start) pack_next();
        float *weight = weights + start * kBackwardRows, *slope = slopes + start * kBackwardRows;
        score(rows, start, queries, key_panels, weight, next_keys);
        score(rows, start, grads, value_panels, slope, next_values);
        for (int64_t r = 0; r < rows; ++r) weigh_row(r, start, weight + r * kChunk, slope + r * kChunk, lse[r]);
      }
      const int64_t whole = least(all, round_up(own, kTileRows));  // keys of the tiles of dk and dv
      int64_t skip = 0;
      for (int64_t start = 0; start < own; start += kChunk) {
        const int64_t n = least(kChunk, whole - start);
        float *weight = weights + start * kBackwardRows, *slope = slopes + start * kBackwardRows;
        for (int64_t r = 0; r < rows; ++r) slope_row(r, start, n, weight + r * kChunk, slope + r * kChunk);
        add_to_queries(rows, start, n, slope);
        skip = add_to_keys(rows, start, n, skip, weight, slope);
      }
      summed = most(summed, whole);
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* to = row_of<T>(p.dq, b, h, u + r);
      if (sees[r] == 0) {
        write_zeros(to, p.width);
      } else {
        write_row(to, dq + r * padded, p.width, 1.0f);
      }
    }
  }

  // Keys of the chunk from `start` on that row r sees.
  int64_t sees_of(int64_t r, int64_t start) const { return most(0, least(kChunk, sees[r] - start)); }

  // ... that the slice of rows from r on goes through.
  int64_t near_of(int64_t r, int64_t rows, int64_t start) const {
    int64_t n = 0;
    for (int64_t i = r; i < least(rows, r + kTileRows); ++i) n = most(n, sees_of(i, start));
    return n;
  }

  // Products of the block's rows with the panels of one chunk. A group of panels stays in the nearest cache while all
  // rows pass over it.
  void score(int64_t rows, int64_t start, const float* from, const float* panels, float* to,
             Ahead<const T>& next) const {
    for (int64_t at = 0; at < kChunk; at += kTileVecs * kLanes) {
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t left = near_of(r, rows, start) - at;
        if (left <= 0) continue;
        next.ask(kAskRows);
        const int64_t vecs = least(kTileVecs, (left + kLanes - 1) / kLanes);
        const float *a = from + r * padded, *b = panels + (start + at) * p.width;
        float* c = to + r * kChunk + at;
        multiply_deep<Plain>(least(kTileRows, rows - r),
                             {a, padded, 1, b, kLanes, p.width * kLanes, c, kChunk, p.width, vecs});
      }
    }
  }

  // Row r's scores for a chunk become weights.
  void weigh_row(int64_t r, int64_t start, float* weight, const float* slope, float lse) {
    const int64_t n = sees_of(r, start);
    const Vec factor = splat(p.scale), shift = splat(-lse);
    Vec total = load(totals + r * kLanes), dot = load(dots + r * kLanes);
    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec x = keep(exp_negative(fma(factor, load(weight + i), shift)), zero(), n - i);
      store(weight + i, x);
      total = add(total, x);
      dot = add(dot, keep(mul(x, load(slope + i)), zero(), n - i));
    }
    store(totals + r * kLanes, total), store(dots + r * kLanes, dot);
  }

  // Row r's dP for a chunk become dS; up to n, its weights and these become 0 where it does not see.
  void slope_row(int64_t r, int64_t start, int64_t n, float* weight, float* slope) const {
    // lse is one rounded number; what it leaves the weights' sum away from 1 would be in every gradient.
    const float correction = 1.0f / sum(load(totals + r * kLanes));
    const Vec one = splat(correction), mean = splat(sum(load(dots + r * kLanes)) * correction), factor = splat(p.scale);
    const int64_t own = sees_of(r, start);
    int64_t i = 0;
    for (; i < own; i += kLanes) {
      const Vec w = mul(one, load(weight + i)), x = mul(mul(factor, w), sub(load(slope + i), mean));
      store(weight + i, w);
      store(slope + i, keep(x, zero(), own - i));
    }
    for (; i < n; i += kLanes) store(weight + i, zero()), store(slope + i, zero());
  }

  // dq of the block. The chunk's n rows of dk and dv are wanted next.
  void add_to_queries(int64_t rows, int64_t start, int64_t n, const float* slope) {
    Ahead<float> next_dk{dk + start * padded, padded, n, padded}, next_dv{dv + start * padded, padded, n, padded};
    for (int64_t at = 0, vecs; at < padded / kLanes; at += vecs) {
      vecs = next_vecs(padded / kLanes - at);
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t near = near_of(r, rows, start);
        if (near == 0) continue;
        next_dk.ask(kAskRows), next_dv.ask(kAskRows);
        const float *a = slope + r * kChunk, *b = key_columns + start * padded + at * kChunk * kLanes;
        float* c = dq + r * padded + at * kLanes;
        multiply<Plain, true>(least(kTileRows, rows - r),
                              {a, kChunk, 1, b, kLanes, kChunk * kLanes, c, padded, near, vecs});
      }
    }
  }

  // dk and dv of the chunk's n keys. Rows before the first that sees key j have nothing for it and for later keys:
  // `skip` of them for the keys before this chunk; returns how many for its last.
  int64_t add_to_keys(int64_t rows, int64_t start, int64_t n, int64_t skip, const float* weight, const float* slope) {
    int64_t skips[kChunk / kTileRows];
    for (int64_t j = 0; j < n; j += kTileRows) {
      while (sees[skip] <= start + j) ++skip;
      skips[j / kTileRows] = skip;
    }
    const auto add = [&](const float* from, const float* columns, float* to) {
      for (int64_t at = 0, vecs; at < padded / kLanes; at += vecs) {
        vecs = next_vecs(padded / kLanes - at);
        for (int64_t j = 0; j < n; j += kTileRows) {
          const int64_t count = least(kTileRows, n - j), first = skips[j / kTileRows];
          const float *a = from + first * kChunk + j, *b = columns + (at * kChunk + first) * kLanes;
          float* c = to + j * padded + at * kLanes;
          const Product product{a, 1, kChunk, b, kLanes, kChunk * kLanes, c, padded, rows - first, vecs};
          start + j < summed ? multiply<Plain, true>(count, product) : multiply<Plain, false>(count, product);
        }
      }
    };
    add(weight, grad_columns, dv + start * padded);
    add(slope, query_columns, dk + start * padded);
    return skip;
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

// panel_linear.cpp
void panel_linear(const PanelLinear& p, int64_t begin, int64_t end);

// few_rows.cpp
void round_rows(const float* x, int64_t rows, int64_t inputs, int16_t* out, float* steps);
void few_rows(const FewRows& p, int64_t begin, int64_t end);

// chunk.cpp
void norm(const NormRows& p, int64_t begin, int64_t end);
void gate(const float* x, const float* by, int64_t n, float* out);
void convolve(const Taps& p, int64_t begin, int64_t end);
void chunk_attention(const ChunkAttention& p, int64_t begin, int64_t end, float* scratch);

extern const Kernels kKernels;
const Kernels kKernels = {BESTOW_NAME(BESTOW_ISA),
                          forward_bytes,
                          forward,
                          backward_bytes,
                          backward,
                          panel_linear,
                          round_rows,
                          few_rows,
                          norm,
                          gate,
                          convolve,
                          chunk_attention};

}  // namespace bestow::BESTOW_ISA
