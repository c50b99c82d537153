// The gradients of staircase attention. Compiled once per instruction set (BESTOW_ISA), like staircase_forward.cpp.

#include "bestow/forms.h"

namespace bestow::BESTOW_ISA {
namespace {

static_assert(kBand <= kChunk, "rows and keys are packed alike");

// With weights P = e^(scale q k - lse) and dP = grad v:  dS = scale P (dP - sum_j P dP),
// dq = dS k, dk = dS^T q, dv = P^T grad.
//
// A block of query rows meets the keys twice, chunk after chunk: for P and dP, and, when the sums over all keys are
// known, for the gradients. dk and dv begin with the first block that sees as far; later blocks add to them.
template <class T>
struct BackwardUnit {
  using Form = typename FormOf<T>::type;
  using How = typename Form::How;
  const Backward& p;
  const int64_t padded, depth, key_row;
  const T *keys, *values;
  const float *key_rows, *value_rows;     // the same for products, where they lie or in the copy
  Ahead<const T> next_keys, next_values;  // those of the chunk that will be packed next
  int64_t all, packed, summed;  // keys that some row sees; of these the packed ones, and those with sums in dk and dv
  float *key_copy, *value_copy, *column_copy, *dk_sums, *dv_sums, *dk, *dv;
  float *query_panels, *grad_panels, *query_copy, *grad_copy, *dq;  // of one block, as is what follows
  Columns queries, grads;
  float *weights, *slopes;           // (keys, kBand)
  float *some_rows, *slope_columns;  // a vector of rows; slopes of a chunk, where those above cannot be read over keys
  float totals[kBand], dots[kBand], shifts[kBand];  // sums of P and of P dP; -lse in powers of two
  int64_t sees[kBand];

  BackwardUnit(Arena& arena, const Backward& problem)
      : p(problem), padded(round_up(p.width, kLanes)), depth(Form::depth(p.width)), key_row(Form::row(p.width)) {
    const int64_t frames = round_up(p.frames, kChunk);
    key_copy = arena.take<float>(frames * key_row);
    value_copy = arena.take<float>(frames * key_row);
    column_copy = arena.take<float>(Form::depth(frames) * padded);
    dk_sums = arena.take<float>(frames * padded);
    dv_sums = arena.take<float>(frames * padded);
    query_panels = arena.take<float>(kBand * depth);
    grad_panels = arena.take<float>(kBand * depth);
    query_copy = arena.take<float>(Form::depth(kChunk) * padded);
    grad_copy = arena.take<float>(Form::depth(kChunk) * padded);
    dq = arena.take<float>(kBand * padded);
    weights = arena.take<float>(kBand * frames);
    slopes = arena.take<float>(kBand * frames);
    some_rows = arena.take<float>(kLanes * depth);
    slope_columns = arena.take<float>(Form::depth(kChunk) * kBand);
  }

  void run(int64_t unit) {
    const int64_t b = unit / p.kv_heads, group = unit % p.kv_heads, share = p.heads / p.kv_heads;
    keys = row_of<T>(p.k, b, group, 0), values = row_of<T>(p.v, b, group, 0);
    key_rows = Form::rows(keys, p.k.row, 0, p.width, key_copy);
    value_rows = Form::rows(values, p.v.row, 0, p.width, value_copy);
    all = furthest(p, b, 0, p.positions), packed = 0, summed = 0;
    T *to_k = row_of<T>(p.dk, b, group, 0), *to_v = row_of<T>(p.dv, b, group, 0);
    dk = sums_in(to_k, dk_sums), dv = sums_in(to_v, dv_sums);
    for (int64_t h = group * share; h < (group + 1) * share; ++h) {
      for (int64_t u = 0; u < p.positions; u += kBand) block(b, h, u, least(kBand, p.positions - u));
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
    Form::rows(keys + packed * p.k.row, p.k.row, n, p.width, key_copy + packed * key_row);
    Form::rows(values + packed * p.v.row, p.v.row, n, p.width, value_copy + packed * key_row);
    key_columns(packed, n);
    next_keys = {keys + next * p.k.row, p.k.row, more, p.width};
    next_values = {values + next * p.v.row, p.v.row, more, p.width};
    packed = next;
  }

  // Keys from `start` on as columns; packed n of them by now, or, with 0, before.
  Columns key_columns(int64_t start, int64_t n) {
    return Form::columns(keys + start * p.k.row, p.k.row, n, p.width, column_copy + Form::depth(start) * padded);
  }

  void block(int64_t b, int64_t h, int64_t u, int64_t rows) {
    const int64_t vecs = (rows + kLanes - 1) / kLanes;
    int64_t own = 0;
    for (int64_t r = 0; r < vecs * kLanes; ++r) {
      own = most(own, sees[r] = r < rows ? seen(p, b, u + r) : 0);
      shifts[r] = sees[r] > 0 ? -kLog2E * p.lse[(b * p.heads + h) * p.positions + u + r] : 0.0f;
      totals[r] = dots[r] = 0.0f;
    }
    if (own > 0) {
      const T *q = row_of<T>(p.q, b, h, u), *grad = row_of<T>(p.grad, b, h, u);
      Form::panels(q, p.q.row, rows, p.width, some_rows, query_panels);
      Form::panels(grad, p.grad.row, rows, p.width, some_rows, grad_panels);
      queries = Form::columns(q, p.q.row, rows, p.width, query_copy);
      grads = Form::columns(grad, p.grad.row, rows, p.width, grad_copy);
      write_zeros(dq, rows * padded);
      int64_t nears[kBand / kLanes];
      const auto look = [&](int64_t start) {
        for (int64_t v = 0; v < vecs; ++v) nears[v] = near(sees + v * kLanes, kLanes, start, kChunk);
      };
      for (int64_t start = 0; start < own; start += kChunk) {
        if (packed <= start) pack_next();
        look(start);
        float *weight = weights + start * kBand, *slope = slopes + start * kBand;
        const int64_t at = start * key_row;
        multiply_seen<How>({key_rows + at, query_panels, key_row, depth, weight}, nears, vecs,
                           [&] { next_keys.ask(kAskRows); });
        multiply_seen<How>({value_rows + at, grad_panels, key_row, depth, slope}, nears, vecs,
                           [&] { next_values.ask(kAskRows); });
        for (int64_t v = 0; v < vecs; ++v) weigh(v * kLanes, start, nears[v], weight, slope);
      }
      const int64_t whole = least(all, round_up(own, kTileRows));  // keys of the tiles of dk and dv
      int64_t skip = 0;
      for (int64_t start = 0; start < own; start += kChunk) {
        const int64_t n = least(kChunk, whole - start);
        look(start);
        float *weight = weights + start * kBand, *slope = slopes + start * kBand;
        for (int64_t v = 0; v < vecs; ++v) incline(v * kLanes, start, nears[v], n, weight, slope);
        add_to_queries(rows, start, n, Form::kTogether == 1 ? slope : slope_columns);
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

  // The scores of kLanes rows from row i on with n keys become weights.
  void weigh(int64_t i, int64_t start, int64_t n, float* weight, const float* slope) {
    const Sight sight(sees + i, start, n);
    const Vec factor = splat(p.scale * kLog2E), shift = load(shifts + i), nothing = splat(kLeastPower);
    // Long sums of equal numbers round the same way each time: four short ones err less.
    constexpr int64_t kStrands = 4;
    Vec total[kStrands] = {zero(), zero(), zero(), zero()}, dot[kStrands] = {zero(), zero(), zero(), zero()};
    weight += i, slope += i;
    const auto weigh_key = [&](int64_t j, int64_t s) {
      const Vec x = exp2_negative(fma(factor, load(weight + j * kBand), shift));
      store(weight + j * kBand, x);
      total[s] = add(total[s], x), dot[s] = fma(x, load(slope + j * kBand), dot[s]);
    };
    int64_t j = 0;
    for (; j + kStrands <= sight.common; j += kStrands) {
#pragma GCC unroll 4
      for (int64_t s = 0; s < kStrands; ++s) weigh_key(j + s, s);
    }
    for (; j < n; ++j) {
      const Vec place = splat(j), score = fma(factor, load(weight + j * kBand), shift);
      const auto if_seen = [&](Vec x, Vec other) { return where_below(place, sight.each, x, other); };
      const Vec x = if_seen(exp2_negative(if_seen(score, nothing)), zero());
      store(weight + j * kBand, x);
      const int64_t s = j % kStrands;
      total[s] = add(total[s], x), dot[s] = add(dot[s], if_seen(mul(x, load(slope + j * kBand)), zero()));
    }
    const auto all_of = [](const Vec(&x)[kStrands]) { return add(add(x[0], x[2]), add(x[1], x[3])); };
    store(totals + i, add(load(totals + i), all_of(total))), store(dots + i, add(load(dots + i), all_of(dot)));
  }

  // Their dP become dS. Up to `whole` keys, weights and dS are 0 where a row does not see.
  void incline(int64_t i, int64_t start, int64_t n, int64_t whole, float* weight, float* slope) const {
    const Sight sight(sees + i, start, n);
    // lse is one rounded number; what it leaves the weights' sum away from 1 would be in every gradient.
    const Vec correction = div(splat(1.0f), load(totals + i)), mean = mul(load(dots + i), correction);
    const Vec factor = splat(p.scale);
    const auto keep_key = [&](int64_t j, Vec w, Vec x) {
      Form::keep_row(weight + j * kBand, i, w), Form::keep_row(slope + j * kBand, i, x);
      return x;
    };
    const auto slope_of = [&](int64_t j) {
      if (j >= whole) return zero();
      if (j >= n) return keep_key(j, zero(), zero());
      const Vec w = mul(correction, load(weight + j * kBand + i));
      const Vec x = mul(mul(factor, w), sub(load(slope + j * kBand + i), mean));
      const auto if_seen = [&](Vec x) { return where_below(splat(j), sight.each, x, zero()); };
      return j < sight.common ? keep_key(j, w, x) : keep_key(j, if_seen(w), if_seen(x));
    };
    for (int64_t j = 0; j < whole; j += Form::kTogether) {
      const Vec x = slope_of(j);
      if (Form::kTogether == 2) Form::keep(slope_columns + i, j, x, slope_of(j + 1));
    }
  }

  // dq of the block. The chunk's n rows of dk and dv are wanted next.
  void add_to_queries(int64_t rows, int64_t start, int64_t n, const float* slope) {
    Ahead<float> next_dk{dk + start * padded, padded, n, padded}, next_dv{dv + start * padded, padded, n, padded};
    const Columns columns = key_columns(start, 0);
    for (int64_t at = 0, vecs; at < padded / kLanes; at += vecs) {
      vecs = next_vecs(padded / kLanes - at);
      for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t seen = near(sees + r, least(kTileRows, rows - r), start, kChunk);
        if (seen == 0) continue;
        next_dk.ask(kAskRows), next_dv.ask(kAskRows);
        multiply<How, true>(least(kTileRows, rows - r),
                            {slope + r, 1, kBand, columns.at + at * columns.vec, columns.step, columns.vec,
                             dq + r * padded + at * kLanes, padded, Form::depth(seen), vecs});
      }
    }
  }

  // dk and dv of the chunk's n keys. Rows before the first that sees key j have nothing for it and for later keys:
  // `skip` of them for the keys before this chunk; returns how many for its last.
  int64_t add_to_keys(int64_t rows, int64_t start, int64_t n, int64_t skip, const float* weight, const float* slope) {
    int64_t skips[kChunk / kTileRows];  // in floats
    for (int64_t j = 0; j < n; j += kTileRows) {
      while (sees[skip] <= start + j) ++skip;
      skips[j / kTileRows] = skip / Form::kTogether;
    }
    const auto add = [&](const float* from, const Columns& columns, float* to) {
      for (int64_t at = 0, vecs; at < padded / kLanes; at += vecs) {
        vecs = next_vecs(padded / kLanes - at);
        for (int64_t j = 0; j < n; j += kTileRows) {
          const int64_t count = least(kTileRows, n - j), first = skips[j / kTileRows];
          const float *a = from + j * kBand + first, *b = columns.at + at * columns.vec + first * columns.step;
          float* c = to + j * padded + at * kLanes;
          const Product product{a, kBand, 1, b, columns.step, columns.vec, c, padded, Form::depth(rows) - first, vecs};
          start + j < summed ? multiply<How, true>(count, product) : multiply<How, false>(count, product);
        }
      }
    };
    add(weight, grads, dv + start * padded);
    add(slope, queries, dk + start * padded);
    return skip;
  }
};

}  // namespace

size_t backward_bytes(const Backward& p) { return bytes_of<BackwardUnit>(p); }

void backward(const Backward& p, int64_t begin, int64_t end, void* workspace) {
  run_units<BackwardUnit>(p, begin, end, workspace);
}

}  // namespace bestow::BESTOW_ISA
