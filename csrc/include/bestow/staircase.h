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
  Unit(const Forward& p, int64_t unit) {
    const int64_t split = unit % p.splits, pair = unit / p.splits;
    b = pair / p.kv_heads, group = pair % p.kv_heads;
    const int64_t share = round_up((p.positions + p.splits - 1) / p.splits, kTileRows);
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

// few_queries.cpp: a forward pass of at most kFewRows rows for each key head.
size_t few_queries_bytes(const Forward& p);
void few_queries(const Forward& p, int64_t begin, int64_t end, void* workspace);

}  // namespace bestow::BESTOW_ISA
