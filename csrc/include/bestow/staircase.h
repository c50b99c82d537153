// What the passes of staircase attention share: their workspace, where rows are and how far they see.
#pragma once

#include "bestow/cpu.h"
#include "bestow/products.h"
#include "bestow/simd.h"

namespace bestow::BESTOW_ISA {

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

// Where a unit's query rows are: key head `group` of utterance `b`, positions begin ... end of its heads.
struct Unit {
  int64_t b, group, begin, end;
  Unit(const Forward& p, int64_t unit) : Unit(p, unit / p.splits, unit % p.splits, p.splits) {}
  Unit(const Softmax& p, int64_t unit) : Unit(p, unit, 0, 1) {}

 private:
  Unit(const Staircase& p, int64_t pair, int64_t split, int64_t splits)
      : b(pair / p.kv_heads), group(pair % p.kv_heads) {
    const int64_t share = round_up((p.positions + splits - 1) / splits, kTileRows);
    begin = least(p.positions, split * share), end = least(p.positions, begin + share);
  }
};

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

// Asks for rows that will be read soon: memory answers too late for a program that asks when it needs them. They are
// wanted in the second cache: the first has room for what is computed with now, and takes few requests at a time.
// Always inline, and who calls it too: GCC takes a function that does nothing else for one without effect, and leaves
// its calls out.
template <class T>
[[gnu::always_inline]] inline void fetch(const T* rows, int64_t row, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; ++i, rows += row) {
    const char* line = reinterpret_cast<const char*>(rows);
    for (size_t at = 0; at < width * sizeof(T); at += 64) __builtin_prefetch(line + at, 0, 2);
  }
}

constexpr int64_t kAskRows = 2;  // with each small product; fewer are not there in time

// Rows wanted soon, asked for a few at a time between other work.
template <class T>
struct Ahead {
  T* next;
  int64_t row, left, width;
  [[gnu::always_inline]] void ask(int64_t count) {
    count = least(count, left);
    fetch(next, row, count, width);
    next += count * row, left -= count;
  }
};

// How many of the `count` keys from `start` on some of the rows see.
inline int64_t near(const int64_t* sees, int64_t rows, int64_t start, int64_t count) {
  int64_t n = 0;
  for (int64_t i = 0; i < rows; ++i) n = most(n, sees[i]);
  return most(0, least(count, n - start));
}

// How many of the `count` keys from `start` on each of kLanes rows sees, and all of them do.
struct Sight {
  Vec each;
  int64_t common;
  Sight(const int64_t* sees, int64_t start, int64_t count) : common(count) {
    float own[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t n = near(sees + lane, 1, start, count);
      own[lane] = static_cast<float>(n), common = least(common, n);
    }
    each = load(own);
  }
};

// A product of keys, row by row, with vectors of kLanes query rows side by side, in panels.
struct Scores {
  const float *keys, *panels;
  int64_t key_row, depth;
  float* out;  // (keys, kBand)
};
constexpr int64_t kBand = 64;  // query rows whose scores against a chunk lie side by side
static_assert(kBand % kTileRows == 0 && kBand % kLanes == 0, "whole tiles and vectors");

// Scores of `vecs` vectors of queries, of which vector v sees nears[v] keys. A few of them at a time stay in the
// nearest cache while the keys pass by; where one has seen all it sees, the others go on without it.
template <class How, class Ask>
void multiply_seen(const Scores& p, const int64_t* nears, int64_t vecs, const Ask& ask) {
  for (int64_t j = 0, low = 0, high = vecs;;) {
    while (low < high && nears[low] <= j) ++low;
    while (low < high && nears[high - 1] <= j) --high;
    if (low == high) return;
    int64_t until = 0, last = 0;
    for (int64_t v = low; v < high; ++v) {
      last = most(last, nears[v]);
      if (nears[v] > j) until = until == 0 ? nears[v] : least(until, nears[v]);
    }
    until = least(last, round_up(until, kTileRows));
    for (int64_t v = low, wide; v < high; v += wide) {
      wide = next_vecs(high - v);
      const int64_t step = wide == 1 ? kTallRows : kTileRows;
      for (int64_t k = j; k < until; k += step) {
        ask();
        multiply_deep<How>(least(step, until - k),
                           {p.keys + k * p.key_row, p.key_row, 1, p.panels + v * kLanes * p.depth, kLanes,
                            p.depth * kLanes, p.out + k * kBand + v * kLanes, kBand, p.depth, wide});
      }
    }
    j = until;
  }
}

// A Kernel<T> takes its memory from an arena when it is made for a problem, and does one unit of it at a time.
template <template <class> class Kernel, class Problem>
size_t bytes_of(const Problem& p) {
  Arena arena{nullptr};
  switch (p.scalar) {
    case Scalar::kFloat:
      Kernel<float>(arena, p);
      break;
    case Scalar::kBFloat16:
      Kernel<BFloat16>(arena, p);
      break;
    default:
      Kernel<Half>(arena, p);
  }
  return arena.used;
}

template <class Kernel, class Problem>
void run_as(const Problem& p, int64_t begin, int64_t end, void* workspace) {
  Arena arena{static_cast<char*>(workspace)};
  Kernel kernel(arena, p);
  for (int64_t unit = begin; unit < end; ++unit) kernel.run(unit);
}

template <template <class> class Kernel, class Problem>
void run_units(const Problem& p, int64_t begin, int64_t end, void* workspace) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return run_as<Kernel<float>>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return run_as<Kernel<BFloat16>>(p, begin, end, workspace);
    default:
      return run_as<Kernel<Half>>(p, begin, end, workspace);
  }
}

// few_queries.cpp: a forward pass of at most kFewRows rows for each key head.
size_t few_queries_bytes(const Forward& p);
void few_queries(const Forward& p, int64_t begin, int64_t end, void* workspace);

}  // namespace bestow::BESTOW_ISA
