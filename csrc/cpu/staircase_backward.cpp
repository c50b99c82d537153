// The gradients of staircase attention. Compiled once per instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include "bestow/staircase.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int64_t kRows = 64;  // query rows whose weights for all keys are held at a time
static_assert(kRows <= kChunk, "rows and keys are packed alike");
constexpr int64_t kAskRows = 2;  // rows that each step asks for ahead

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
  int64_t sees[kRows];

  BackwardUnit(Arena& arena, const Backward& problem) : p(problem), padded(round_up(p.width, kLanes)) {
    const int64_t frames = round_up(p.frames, kChunk);
    key_panels = arena.take<float>(frames * p.width);
    value_panels = arena.take<float>(frames * p.width);
    key_columns = arena.take<float>(frames * padded);
    dk_sums = arena.take<float>(frames * padded);
    dv_sums = arena.take<float>(frames * padded);
    query_copy = arena.take<float>(kRows * padded);
    grad_copy = arena.take<float>(kRows * padded);
    query_columns = arena.take<float>(kChunk * padded);
    grad_columns = arena.take<float>(kChunk * padded);
    dq = arena.take<float>(kRows * padded);
    weights = arena.take<float>(kRows * frames);
    slopes = arena.take<float>(kRows * frames);
    totals = arena.take<float>(kRows * kLanes);
    dots = arena.take<float>(kRows * kLanes);
  }

  void run(int64_t b, int64_t group) {
    const int64_t share = p.heads / p.kv_heads;
    keys = row_of<T>(p.k, b, group, 0), values = row_of<T>(p.v, b, group, 0);
    all = furthest(p, b, 0, p.positions), packed = 0, summed = 0;
    T *to_k = row_of<T>(p.dk, b, group, 0), *to_v = row_of<T>(p.dv, b, group, 0);
    dk = sums_in(to_k, dk_sums), dv = sums_in(to_v, dv_sums);
    for (int64_t h = group * share; h < (group + 1) * share; ++h) {
      for (int64_t u = 0; u < p.positions; u += kRows) block(b, h, u, least(kRows, p.positions - u));
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
    pack_columns(keys + packed * p.k.row, p.k.row, n, p.width, key_columns + packed * padded);
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
      pack_columns(q, p.q.row, rows, p.width, query_columns);
      pack_columns(grad, p.grad.row, rows, p.width, grad_columns);
      write_zeros(dq, rows * padded);
      write_zeros(totals, rows * kLanes);
      write_zeros(dots, rows * kLanes);
      const float* lse = p.lse + (b * p.heads + h) * p.positions + u;
      for (int64_t start = 0; start < own; start += kChunk) {
        if (packed <= start) pack_next();
        float *weight = weights + start * kRows, *slope = slopes + start * kRows;
        score(rows, start, queries, key_panels, weight, next_keys);
        score(rows, start, grads, value_panels, slope, next_values);
        for (int64_t r = 0; r < rows; ++r) weigh_row(r, start, weight + r * kChunk, slope + r * kChunk, lse[r]);
      }
      const int64_t whole = least(all, round_up(own, kTileRows));  // keys of the tiles of dk and dv
      int64_t skip = 0;
      for (int64_t start = 0; start < own; start += kChunk) {
        const int64_t n = least(kChunk, whole - start);
        float *weight = weights + start * kRows, *slope = slopes + start * kRows;
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
size_t space(const Backward& p) {
  Arena arena{nullptr};
  const BackwardUnit<T> unit(arena, p);
  return arena.used;
}

template <class T>
void run(const Backward& p, int64_t begin, int64_t end, void* workspace) {
  Arena arena{static_cast<char*>(workspace)};
  BackwardUnit<T> unit(arena, p);
  for (int64_t i = begin; i < end; ++i) unit.run(i / p.kv_heads, i % p.kv_heads);
}

}  // namespace

size_t backward_bytes(const Backward& p) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return space<float>(p);
    case Scalar::kBFloat16:
      return space<BFloat16>(p);
    default:
      return space<Half>(p);
  }
}

void backward(const Backward& p, int64_t begin, int64_t end, void* workspace) {
  switch (p.scalar) {
    case Scalar::kFloat:
      return run<float>(p, begin, end, workspace);
    case Scalar::kBFloat16:
      return run<BFloat16>(p, begin, end, workspace);
    default:
      return run<Half>(p, begin, end, workspace);
  }
}

}  // namespace bestow::BESTOW_ISA
