// Staircase attention on the CPU. Compiled once per instruction set, each time with its own flags and BESTOW_ISA.
//
// One unit of work is a key head of one utterance. Its query rows are packed once, into panels of kLanes rows side by
// side; keys and values are used as they lie, chunk after chunk, where products can read them so, and only as far as
// some row sees. Each chunk meets all query rows that see into it, while it is in the caches: scores, one more step of
// each row's softmax, the product with the values. Scores of a key lie side by side for all queries, so that a softmax
// is kLanes of them at a time and none has to be summed across a vector. Scores are computed as far as one of kLanes
// rows sees, products with values as far as one of a few; no mask lies in memory anywhere. Where the query rows are few
// (decoding), see few_queries.cpp.
//
// Where the CPU multiplies pairs of bfloat16 numbers, bfloat16 tensors are computed with those; everywhere else 16-bit
// keys and values are widened chunk by chunk, and computing is float (forms.h).

#include <cmath>

#include "bestow/forms.h"

namespace bestow::BESTOW_ISA {
namespace {

// The rows of one unit, chunk after chunk of its keys.
template <class T>
struct ForwardUnit {
  using Form = typename FormOf<T>::type;
  using How = typename Form::How;
  const Forward& p;
  const int64_t share, most_rows, depth, padded, key_row;
  float *key_copy, *value_copy, *scores, *queries, *panels, *sums, *totals, *peaks;
  int64_t* sees;
  const float* keys;  // of one chunk, as is what follows
  Columns values;
  int64_t start, count;
  Ahead<const T> next_keys, next_values;  // those of the next chunk, while one is computed with

  ForwardUnit(Arena& arena, const Forward& problem)
      : p(problem),
        share(p.heads / p.kv_heads),
        most_rows(round_up(share * p.positions, kLanes)),
        depth(Form::depth(p.width)),
        padded(round_up(p.width, kLanes)),
        key_row(Form::row(p.width)) {
    key_copy = arena.take<float>(kChunk * key_row);
    value_copy = arena.take<float>(Form::depth(kChunk) * padded);
    scores = arena.take<float>(kChunk * kBand);
    queries = arena.take<float>(kLanes * depth + kLanes);  // the last row is written in whole vectors
    panels = arena.take<float>(most_rows * depth);
    sums = arena.take<float>(most_rows * padded);
    totals = arena.take<float>(most_rows);
    peaks = arena.take<float>(most_rows);
    sees = arena.take<int64_t>(most_rows);
  }

  void run(int64_t unit) {
    const Unit at(p, unit);
    const int64_t span = at.end - at.begin, rows = share * span, whole = round_up(rows, kLanes);
    int64_t all = 0;
    for (int64_t i = 0; i < whole; i += kLanes) {
      int64_t some = 0;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t row = i + lane, h = at.group * share + row / span, u = at.begin + row % span;
        some = most(some, sees[row] = row < rows ? seen(p, at.b, u) : 0);
        if (row < rows && sees[row] > 0) Form::pack_query(row_of<T>(p.q, at.b, h, u), p.width, queries + lane * depth);
      }
      // Rows that see nothing are left out, or hold what the buffer held: nobody reads their scores.
      if (some > 0) pack_panels(queries, depth, least(kLanes, rows - i), depth, panels + i * depth);
      all = most(all, some);
      store(peaks + i, splat(-INFINITY));
      store(totals + i, zero());
    }
    write_zeros(sums, rows * padded);
    for (start = 0; start < all; start += kChunk) {
      count = least(kChunk, all - start);
      keys = Form::rows(row_of<T>(p.k, at.b, at.group, start), p.k.row, count, p.width, key_copy);
      values = Form::columns(row_of<T>(p.v, at.b, at.group, start), p.v.row, count, p.width, value_copy);
      if (start + count < all) {
        look_ahead(at.b, at.group, start + count, all);
      } else {
        const Unit to(p, least(unit + 1, p.units() - 1));
        look_ahead(to.b, to.group, 0, all);  // about as far as here
      }
      for (int64_t i = 0; i < rows; i += kBand) attend(i, least(kBand, rows - i));
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = at.group * share + i / span, u = at.begin + i % span;
      T* to = row_of<T>(p.out, at.b, h, u);
      float* lse = p.lse + (at.b * p.heads + h) * p.positions + u;
      if (sees[i] == 0) {
        write_zeros(to, p.width);
        *lse = INFINITY;
      } else {
        write_row(to, sums + i * padded, p.width, 1.0f / totals[i]);
        *lse = peaks[i] * kLn2 + std::log(totals[i]);
      }
    }
  }

  // The chunk that is wanted next begins at key `from`, of those before `until`.
  void look_ahead(int64_t b, int64_t group, int64_t from, int64_t until) {
    const int64_t n = least(kChunk, until - from);
    next_keys = {row_of<T>(p.k, b, group, from), p.k.row, n, p.width};
    next_values = {row_of<T>(p.v, b, group, from), p.v.row, n, p.width};
  }

  // Rows begin ... begin + rows meet the chunk.
  void attend(int64_t begin, int64_t rows) {
    int64_t nears[kBand / kTileRows], vec_nears[kBand / kLanes], all = 0;
    const int64_t vecs = (rows + kLanes - 1) / kLanes;
    for (int64_t v = 0; v < vecs; ++v) {
      vec_nears[v] = near(sees + begin + v * kLanes, kLanes, start, count);
      all = most(all, vec_nears[v]);
    }
    if (all == 0) return;
    for (int64_t r = 0; r < rows; r += kTileRows)
      nears[r / kTileRows] = near(sees + begin + r, least(kTileRows, rows - r), start, count);
    const auto ask = [&] { next_keys.ask(kAskRows), next_values.ask(kAskRows); };
    multiply_seen<How>({keys, panels + begin * depth, key_row, depth, scores}, vec_nears, vecs, ask);
    for (int64_t v = 0; v < vecs; ++v) {
      if (vec_nears[v] > 0) weigh(begin + v * kLanes, scores + v * kLanes, vec_nears[v]);
    }
    for (int64_t at = 0, wide; at < padded / kLanes; at += wide) {
      wide = next_vecs(padded / kLanes - at);
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t n = nears[r / kTileRows];
        if (n == 0) continue;
        ask();
        multiply<How, true>(least(kTileRows, rows - r),
                            {scores + r, 1, kBand, values.at + at * values.vec, values.step, values.vec,
                             sums + (begin + r) * padded + at * kLanes, padded, Form::depth(n), wide});
      }
    }
  }

  // Folds the scores of kLanes queries from row i on with n keys into their softmax: they become weights, and what was
  // summed before shrinks to the new peak. Scores are in powers of two here.
  void weigh(int64_t i, float* column, int64_t n) {
    const Sight sight(sees + i, start, n);
    const int64_t common = sight.common;
    const Vec factor = splat(p.scale * kLog2E), limit = sight.each, before = load(peaks + i);
    Vec top = before;
    for (int64_t j = 0; j < common; ++j) top = max(mul(factor, load(column + j * kBand)), top);
    for (int64_t j = common; j < n; ++j)
      top = where_below(splat(j), limit, max(mul(factor, load(column + j * kBand)), top), top);
    const Vec shrink = where_below(before, top, exp2_negative(sub(before, top)), splat(1.0f));
    if (start > 0) shrink_sums(i, shrink);
    store(peaks + i, top);
    const Vec shift = sub(zero(), top), nothing = splat(kLeastPower);
    const auto weight = [&](int64_t j) { return exp2_negative(fma(factor, load(column + j * kBand), shift)); };
    const auto seen_weight = [&](int64_t j) {
      const Vec place = splat(j), x = fma(factor, load(column + j * kBand), shift);
      return where_below(place, limit, exp2_negative(where_below(place, limit, x, nothing)), zero());
    };
    Vec even = zero(), odd = zero();
    int64_t j = 0;
    for (; j + 2 <= common; j += 2) {
      const Vec x = weight(j), y = weight(j + 1);
      even = add(even, x), odd = add(odd, y);
      Form::keep(column, j, x, y);
    }
    for (; j < n; j += 2) {
      const Vec x = seen_weight(j), y = j + 1 < n ? seen_weight(j + 1) : zero();
      even = add(even, x), odd = add(odd, y);
      Form::keep(column, j, x, y);
    }
    store(totals + i, fma(shrink, load(totals + i), add(even, odd)));
  }

  void shrink_sums(int64_t i, Vec shrink) {
    float by[kLanes];
    store(by, shrink);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (by[lane] == 1.0f) continue;
      float* row = sums + (i + lane) * padded;
      for (int64_t d = 0; d < padded; d += kLanes) store(row + d, mul(splat(by[lane]), load(row + d)));
    }
  }
};

inline bool few(const Forward& p) { return p.positions * (p.heads / p.kv_heads) <= kFewRows; }

}  // namespace

size_t forward_bytes(const Forward& p) { return few(p) ? few_queries_bytes(p) : bytes_of<ForwardUnit>(p); }

void forward(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  few(p) ? few_queries(p, begin, end, workspace) : run_units<ForwardUnit>(p, begin, end, workspace);
}

}  // namespace bestow::BESTOW_ISA
