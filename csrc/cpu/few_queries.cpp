// Staircase attention of a few query rows, as in decoding: keys and values are read where they lie. Compiled once per
// instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include <cmath>

#include "bestow/staircase.h"

namespace bestow::BESTOW_ISA {
namespace {

// Keys and values are read once, where they lie, and all rows use them then. Queries and sums are padded to whole
// vectors.
constexpr int64_t kFewKeys = 8;  // keys that all rows use before the next are read

// Keys or values of a head, asked for 4 KB before they are read: nearer would be too late, farther would be gone again.
// Behind a head's last row begins the next head, for which that is the beginning. Where heads lie side by side, as in
// caches, the beginning is asked for by itself, and nothing behind the last.
template <class T>
[[gnu::always_inline]] inline Ahead<const T> ahead_of(const T* rows, int64_t row, int64_t count, int64_t width) {
  const int64_t first = 4096 / most(1, width * sizeof(T));
  if (row <= width) return {rows + first * row, row, INT64_MAX, width};
  Ahead<const T> found{rows, row, count, width};
  found.ask(first);
  return found;
}

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
    for (int r = 0; r < kRows; ++r) sums_of_four(c[r], scores + r * ld + j);  // ld has room for the last four
  }
}

// Adds the weighted values of n keys to kVecs vectors of one row's sums, and to one more of which only the first `rest`
// numbers are left, if any are.
template <class T, int kVecs, bool kRest = false>
inline void add_values(const T* v, int64_t row, int64_t n, const float* weights, float* sums, int64_t rest = 0) {
  constexpr int kAll = kVecs + kRest;
  Vec c[kAll];
#pragma GCC unroll 8
  for (int j = 0; j < kAll; ++j) c[j] = load(sums + j * kLanes);
  for (int64_t i = 0; i < n; ++i, v += row) {
    const Vec w = splat(weights[i]);
#pragma GCC unroll 8
    for (int j = 0; j < kVecs; ++j) c[j] = fma(w, load(v + j * kLanes), c[j]);
    if constexpr (kRest) c[kVecs] = fma(w, load_first(v + kVecs * kLanes, rest), c[kVecs]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < kAll; ++j) store(sums + j * kLanes, c[j]);
}

// The same for less than eight vectors: as many together as there are.
template <class T, int kVecs = 7>
inline void add_last_values(const T* v, int64_t row, int64_t n, const float* weights, float* sums, int64_t width) {
  const int64_t rest = width - kVecs * kLanes;
  if (rest > 0) return add_values<T, kVecs, true>(v, row, n, weights, sums, rest);
  if constexpr (kVecs > 0) {
    if (rest == 0) return add_values<T, kVecs>(v, row, n, weights, sums);
    add_last_values<T, kVecs - 1>(v, row, n, weights, sums, width);
  }
}

inline float greatest_score(const float* scores, int64_t n, float scale) {
  const Vec factor = splat(scale);
  const int64_t whole = n / kLanes * kLanes;
  Vec top = splat(-INFINITY);
  for (int64_t i = 0; i < whole; i += kLanes) top = max(mul(factor, load(scores + i)), top);
  if (whole < n) top = max(keep(mul(factor, load(scores + whole)), top, n - whole), top);
  return greatest(top);
}

// Scores become weights 2^(scale score - peak) of n keys, with zeros up to a whole vector; returns their sum in kLanes
// parts.
inline Vec weigh(float* scores, int64_t n, float scale, float peak) {
  const Vec factor = splat(scale), shift = splat(-peak);
  Vec total = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec x = exp2_negative(fma(factor, load(scores + i), shift));
    total = add(total, x);
    store(scores + i, x);
  }
  if (i < n) {
    const Vec x = keep(exp2_negative(fma(factor, load(scores + i), shift)), zero(), n - i);
    total = add(total, x);
    store(scores + i, x);
  }
  return total;
}

// The weights of a few rows, before they are divided by their sums.
template <class T>
struct FewRowsOfWeights {
  const Staircase& p;
  const int64_t share, ld, padded;
  float *queries, *scores;
  int64_t rows, span, begin, all;  // of one unit, as is what follows; `all` is the most that a row sees
  Ahead<const T> keys{};           // asked for next
  int64_t sees[kFewRows];
  float peaks[kFewRows], totals[kFewRows];  // of scores in powers of two

  FewRowsOfWeights(Arena& arena, const Staircase& problem)
      : p(problem),
        share(p.heads / p.kv_heads),
        ld(round_up(p.frames, most(kLanes, kFewKeys))),
        padded(round_up(p.width, kLanes)) {
    queries = arena.take<float>(kFewRows * padded);
    scores = arena.take<float>(kFewRows * ld);
  }

  int64_t head(int64_t group, int64_t i) const { return group * share + i / span; }
  int64_t position(int64_t i) const { return begin + i % span; }

  void look_at(const Unit& at) {
    span = at.end - at.begin, rows = share * span, begin = at.begin, all = 0;
    for (int64_t i = 0; i < rows; ++i) all = most(all, sees[i] = seen(p, at.b, position(i)));
    keys = ahead_of(row_of<T>(p.k, at.b, at.group, 0), p.k.row, all, p.width);
  }

  void weigh_rows(const Unit& at) {
    const int64_t width = p.width;
    for (int64_t i = 0; i < rows; ++i)
      pack_rows(row_of<T>(p.q, at.b, head(at.group, i), position(i)), width, 1, width, queries + i * padded, padded);
    const T* k = row_of<T>(p.k, at.b, at.group, 0);
    for (int64_t j = 0; j < all; j += kFewKeys, k += kFewKeys * p.k.row) {
      keys.ask(kFewKeys);
      const int64_t n = least(kFewKeys, all - j);
      int64_t i = 0;
      for (; i + 2 <= rows; i += 2)
        score_keys<T, 2>(queries + i * padded, k, p.k.row, n, width, scores + i * ld + j, ld);
      if (i < rows) score_keys<T, 1>(queries + i * padded, k, p.k.row, n, width, scores + i * ld + j, ld);
    }
    const float scale = p.scale * kLog2E;
    for (int64_t i = 0; i < rows; ++i) {
      peaks[i] = greatest_score(scores + i * ld, sees[i], scale);
      totals[i] = sum(weigh(scores + i * ld, sees[i], scale, peaks[i]));
    }
  }
};

template <class T>
struct FewQueries : FewRowsOfWeights<T> {
  using Base = FewRowsOfWeights<T>;
  using Base::all, Base::ld, Base::padded, Base::peaks, Base::rows, Base::scores, Base::sees, Base::totals;
  const Forward& p;
  float* sums;

  FewQueries(Arena& arena, const Forward& problem) : Base(arena, problem), p(problem) {
    sums = arena.take<float>(kFewRows * padded);
  }

  void run(int64_t unit) {
    const Unit at(p, unit);
    this->look_at(at);
    const int64_t width = p.width;
    const T* v = row_of<T>(p.v, at.b, at.group, 0);
    Ahead<const T> values = ahead_of(v, p.v.row, all, width);
    this->weigh_rows(at);
    write_zeros(sums, rows * padded);
    for (int64_t j = 0; j < all; j += kFewKeys, v += kFewKeys * p.v.row) {
      values.ask(kFewKeys);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t n = most(0, least(kFewKeys, sees[i] - j));
        const float* weights = scores + i * ld + j;
        float* to = sums + i * padded;
        int64_t d = 0;
        for (; d + 8 * kLanes <= width; d += 8 * kLanes) add_values<T, 8>(v + d, p.v.row, n, weights, to + d);
        if (d < width) add_last_values(v + d, p.v.row, n, weights, to + d, width - d);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = this->head(at.group, i), u = this->position(i);
      T* to = row_of<T>(p.out, at.b, h, u);
      float* lse = p.lse + (at.b * p.heads + h) * p.positions + u;
      if (sees[i] == 0) {
        write_zeros(to, width);
        *lse = INFINITY;
      } else {
        write_row(to, sums + i * padded, width, 1.0f / totals[i]);
        if (p.weights.data != nullptr)
          write_row(row_of<T>(p.weights, at.b, h, u), scores + i * ld, sees[i], 1.0f / totals[i]);
        *lse = peaks[i] * kLn2 + std::log(totals[i]);
      }
    }
  }
};

template <class T>
struct FewWeights : FewRowsOfWeights<T> {
  const Softmax& p;
  FewWeights(Arena& arena, const Softmax& problem) : FewRowsOfWeights<T>(arena, problem), p(problem) {}

  void run(int64_t unit) {
    const Unit at(p, unit);
    this->look_at(at);
    this->weigh_rows(at);
    for (int64_t i = 0; i < this->rows; ++i) {
      T* to = row_of<T>(p.out, at.b, this->head(at.group, i), this->position(i));
      const int64_t n = this->sees[i];
      if (n > 0) write_row(to, this->scores + i * this->ld, n, 1.0f / this->totals[i]);
      write_zeros(to + n, p.frames - n);
    }
  }
};

}  // namespace

size_t few_queries_bytes(const Forward& p) { return bytes_of<FewQueries>(p); }

void few_queries(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  run_units<FewQueries>(p, begin, end, workspace);
}

size_t softmax_bytes(const Softmax& p) { return bytes_of<FewWeights>(p); }

void softmax(const Softmax& p, int64_t begin, int64_t end, void* workspace) {
  run_units<FewWeights>(p, begin, end, workspace);
}

}  // namespace bestow::BESTOW_ISA
