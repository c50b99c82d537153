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

#include "bestow/staircase.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int64_t kBand = 64;  // query rows whose scores against a chunk are held at a time
static_assert(kBand % kTileRows == 0, "whole tiles");

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
  static void pack_values(const T* v, int64_t row, int64_t n, int64_t width, float* panels) {
    pack_columns(v, row, n, width, panels);
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

#if defined(__AVX512BF16__)
using BFloat16Form = PairsOfBFloat16;
#else
using BFloat16Form = Floats<BFloat16>;
#endif

template <class T, class Form>
size_t space(const Forward& p) {
  Arena arena{nullptr};
  const ForwardUnit<T, Form> counted(arena, p);
  return arena.used;
}

template <class T, class Form>
void run(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  Arena arena{static_cast<char*>(workspace)};
  ForwardUnit<T, Form> many(arena, p);
  for (int64_t unit = begin; unit < end; ++unit) many.run(Unit(p, unit));
}

inline bool few(const Forward& p) { return p.positions * (p.heads / p.kv_heads) <= kFewRows; }

}  // namespace

size_t forward_bytes(const Forward& p) {
  if (few(p)) return few_queries_bytes(p);
  switch (p.scalar) {
    case Scalar::kFloat:
      return space<float, Floats<float>>(p);
    case Scalar::kBFloat16:
      return space<BFloat16, BFloat16Form>(p);
    default:
      return space<Half, Floats<Half>>(p);
  }
}

void forward(const Forward& p, int64_t begin, int64_t end, void* workspace) {
  if (few(p)) return few_queries(p, begin, end, workspace);
  switch (p.scalar) {
    case Scalar::kFloat:
      return run<float, Floats<float>>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return run<BFloat16, BFloat16Form>(p, begin, end, workspace);
    default:
      return run<Half, Floats<Half>>(p, begin, end, workspace);
  }
}

}  // namespace bestow::BESTOW_ISA
