// A linear layer for a few rows of input, its weights float, bfloat16 or int8. Compiled once per instruction set.
//
// Reading the weights is all the work: every weight is read once, widened in a register, and meets all input rows
// there. Eight sums are in flight at a time, or twelve of four rows, of as many outputs as the rows leave room for.
//
// From kManyRows rows on, reading float weights is the smaller part: rows then become the lanes, each weight meets a
// vector of them, and no sum has to be taken across lanes.
//
// With int8 weights the inputs become 16-bit integers, one step size per row, and products are summed exactly. Against
// the rounding of the weights that of the inputs does not count, and no weight has to become a float.

#include "bestow/cpu.h"
#include "bestow/products.h"
#include "bestow/simd.h"
#include "bestow/staircase.h"

namespace bestow::BESTOW_ISA {
namespace {

constexpr int kMostRows = 4;
template <int kRows>
constexpr int kOutputsBeside = kRows == kMostRows ? 3 : 8 / kRows;
constexpr int64_t kBlock = 24;         // outputs that all rows meet before the next ones: a multiple of those above
constexpr int64_t kAheadBytes = 4096;  // between the weights that are read and those that are asked for

template <class T>  // float or BFloat16
struct FloatProducts {
  using Input = float;
  using Weight = T;
  using Sum = Vec;
  static constexpr int kStep = kLanes;
  static inline Sum nothing() { return zero(); }
  static inline Vec input(const Input* p) { return load(p); }
  static inline Vec weight(const Weight* p) { return load(p); }
  static inline Vec input_rest(const Input* p, int64_t n) { return load_first(p, n); }
  static inline Vec weight_rest(const Weight* p, int64_t n) { return load_first(p, n); }
  static inline Sum add(Sum sum, Vec x, Vec w) { return fma(x, w, sum); }
  static inline float total(Sum sum) { return bestow::BESTOW_ISA::sum(sum); }
};

// The last n < kStep elements, followed by zeros.
template <class T, int kStep>
struct Padded {
  T data[kStep] = {};
  Padded(const T* p, int64_t n) { std::memcpy(data, p, n * sizeof(T)); }
};

struct Int8Products {
  using Input = int16_t;
  using Weight = int8_t;
#if defined(__AVX512F__)
  using Sum = __m512i;
  static constexpr int kStep = 32;
  static inline Sum nothing() { return _mm512_setzero_si512(); }
  static inline Sum input(const Input* p) { return _mm512_loadu_si512(p); }
  static inline Sum weight(const Weight* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline Sum add(Sum sum, Sum x, Sum w) { return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w)); }
  static inline float total(Sum sum) { return bestow::BESTOW_ISA::sum(_mm512_cvtepi32_ps(sum)); }
#elif defined(__AVX2__)
  using Sum = __m256i;
  static constexpr int kStep = 16;
  static inline Sum nothing() { return _mm256_setzero_si256(); }
  static inline Sum input(const Input* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static inline Sum weight(const Weight* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static inline Sum add(Sum sum, Sum x, Sum w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
  static inline float total(Sum sum) { return bestow::BESTOW_ISA::sum(_mm256_cvtepi32_ps(sum)); }
#else
  typedef int32_t Sum __attribute__((vector_size(16)));
  static constexpr int kStep = 4;
  static inline Sum nothing() { return Sum{0, 0, 0, 0}; }
  static inline Sum input(const Input* p) { return Sum{p[0], p[1], p[2], p[3]}; }
  static inline Sum weight(const Weight* p) { return Sum{p[0], p[1], p[2], p[3]}; }
  static inline Sum add(Sum sum, Sum x, Sum w) { return sum + x * w; }
  static inline float total(Sum sum) {
    return (static_cast<float>(sum[0]) + static_cast<float>(sum[2])) +
           (static_cast<float>(sum[1]) + static_cast<float>(sum[3]));
  }
#endif
  static inline Sum input_rest(const Input* p, int64_t n) { return input(Padded<Input, kStep>(p, n).data); }
  static inline Sum weight_rest(const Weight* p, int64_t n) { return weight(Padded<Weight, kStep>(p, n).data); }
};

// Rows m ... m + kRows - 1 of the input, outputs n ... n + kOutputs - 1.
template <class P, int kRows, int kOutputs>
inline void meet(const FewRows& p, int64_t m, int64_t n) {
  using Input = typename P::Input;
  using Weight = typename P::Weight;
  const int64_t row = p.from_row();
  const Input* x = static_cast<const Input*>(p.input) + m * row;
  const Weight* w = static_cast<const Weight*>(p.weight) + n * p.inputs;
  typename P::Sum sums[kRows][kOutputs];
  for (auto& row : sums)
    for (auto& sum : row) sum = P::nothing();
  constexpr int64_t kAhead = kAheadBytes / sizeof(Weight);
  int64_t k = 0;
  for (; k + P::kStep <= p.inputs; k += P::kStep) {
    // Behind the end of a row, those of the next tile's.
    const Weight* soon = w + k + kAhead + (k + kAhead < p.inputs ? 0 : (kOutputs - 1) * p.inputs);
    decltype(P::input(x)) inputs[kRows];
    for (int i = 0; i < kRows; ++i) inputs[i] = P::input(x + i * row + k);
    for (int j = 0; j < kOutputs; ++j) {
      __builtin_prefetch(soon + j * p.inputs, 0, 2);
      const auto weight = P::weight(w + j * p.inputs + k);
      for (int i = 0; i < kRows; ++i) sums[i][j] = P::add(sums[i][j], inputs[i], weight);
    }
  }
  if (const int64_t rest = p.inputs - k) {
    typename P::Sum inputs[kRows];
    for (int i = 0; i < kRows; ++i) inputs[i] = P::input_rest(x + i * row + k, rest);
    for (int j = 0; j < kOutputs; ++j) {
      const auto weight = P::weight_rest(w + j * p.inputs + k, rest);
      for (int i = 0; i < kRows; ++i) sums[i][j] = P::add(sums[i][j], inputs[i], weight);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    const float step = p.input_scale == nullptr ? 1.0f : p.input_scale[m + i];
    for (int j = 0; j < kOutputs; ++j) {
      const float scale = p.scale == nullptr ? step : step * p.scale[n + j];
      const float bias = p.bias == nullptr ? 0.0f : p.bias[n + j];
      p.out[(m + i) * p.to_row() + n + j] = P::total(sums[i][j]) * scale + bias;
    }
  }
}

template <class P, int kRows, int kOutputs = kOutputsBeside<kRows>>
inline void strip(const FewRows& p, int64_t m, int64_t begin, int64_t end) {
  int64_t n = begin;
  for (; n + kOutputs <= end; n += kOutputs) meet<P, kRows, kOutputs>(p, m, n);
  for (; n < end; ++n) meet<P, kRows, 1>(p, m, n);
}

// Rows of weights a multiple of this apart fall into the same few places of the nearest cache. Eight of them fill
// these, and what else is read throws lines out before they are used up: a single row then meets four at a time.
constexpr int64_t kCrowded = 4096;

// Rows from `first` on.
template <class P>
void multiply_few(const FewRows& p, int64_t begin, int64_t end, int64_t first = 0) {
  const bool crowded = p.inputs * static_cast<int64_t>(sizeof(typename P::Weight)) % kCrowded == 0;
  for (int64_t n = begin; n < end; n += kBlock) {
    const int64_t stop = n + kBlock < end ? n + kBlock : end;
    int64_t m = first;
    for (; m + kMostRows <= p.rows; m += kMostRows) strip<P, kMostRows>(p, m, n, stop);
    for (; m + 2 <= p.rows; m += 2) strip<P, 2>(p, m, n, stop);
    if (m < p.rows) crowded ? strip<P, 1, 4>(p, m, n, stop) : strip<P, 1>(p, m, n, stop);
  }
}

// ---- many rows ----

// From how many on was measured; across a narrow vector a sum costs little, and rows stay rows.
constexpr int64_t kManyRows = kLanes == 16 ? 12 : kLanes == 8 ? 16 : INT64_MAX;

constexpr int64_t kSoon = 256;  // weights of each of the next outputs that are asked for; the rest comes by itself

inline bool many(const FewRows& p) { return p.scalar == Scalar::kFloat && p.scale == nullptr && p.rows >= kManyRows; }

// How many rows become lanes. Those that would leave half of their vector empty, or more, are cheaper as they are.
inline int64_t rows_as_lanes(int64_t rows) { return rows % kLanes <= kLanes / 2 ? rows / kLanes * kLanes : rows; }

struct Turned {
  int64_t taken;  // rows that become lanes
  int64_t rows;   // whole vectors of them
  float* input;   // panels [rows / kLanes][K][kLanes]
  float* output;  // (kLanes, rows): of as many outputs at a time
  Turned(const FewRows& p, void* workspace)
      : taken(rows_as_lanes(p.rows)),
        rows(round_up(taken, kLanes)),
        input(static_cast<float*>(workspace)),
        output(input + rows * p.inputs) {}
  size_t bytes() const { return (output + kLanes * rows - input) * sizeof(float); }
};

// Rows beyond the last one are zeros and are left out again at the end.
void multiply_many(const FewRows& p, int64_t begin, int64_t end, const Turned& turned) {
  pack_panels(static_cast<const float*>(p.input), p.from_row(), turned.taken, p.inputs, turned.input);
  const float* weight = static_cast<const float*>(p.weight);
  for (int64_t n = begin; n < end; n += kLanes) {
    const int64_t outputs = least(kLanes, end - n);
    for (int64_t i = 0; i < outputs; i += kTileRows) {
      const Product product{
          weight + (n + i) * p.inputs,     p.inputs,    1,        turned.input,        kLanes, p.inputs * kLanes,
          turned.output + i * turned.rows, turned.rows, p.inputs, turned.rows / kLanes};
      const int64_t next = n + i + kTileRows;
      if (next < end) fetch(weight + next * p.inputs, p.inputs, least(kTileRows, end - next), least(p.inputs, kSoon));
      multiply_deep<Plain>(least(kTileRows, outputs - i), product);
    }
    const Vec bias = p.bias == nullptr ? zero() : load_first(p.bias + n, outputs);
    for (int64_t m = 0; m < turned.taken; m += kLanes) {
      Vec x[kLanes];
      float* to = p.out + m * p.to_row() + n;
      const int64_t rows = least(kLanes, turned.taken - m);
      for (int i = 0; i < kLanes; ++i)
        x[i] = load(turned.output + i * turned.rows + m);  // what is left over is not read
      transpose(x);
      if (rows == kLanes && outputs == kLanes) {
        for (int i = 0; i < kLanes; ++i) store(to + i * p.to_row(), add(x[i], bias));
      } else {
        for (int64_t i = 0; i < rows; ++i) store_first(to + i * p.to_row(), add(x[i], bias), outputs);
      }
    }
  }
  if (turned.taken < p.rows) multiply_few<FloatProducts<float>>(p, begin, end, turned.taken);
}

// ---- inputs beside int8 weights ----

// The largest integer that inputs may become: a lane adds up at most every fourth product with a weight, in 32 bits.
inline int64_t largest_level(int64_t inputs) {
  const int64_t products = inputs > 4 ? (inputs + 3) / 4 : 1;
  const int64_t most = (int64_t{1} << 31) / (128 * products) - 1;
  return most < 32767 ? most : 32767;
}

inline float round_row(const float* x, int64_t n, int16_t* out) {
  const float most = static_cast<float>(largest_level(n));
  Vec top = zero(), finite = zero();  // 0 times what is not finite is NaN
  const int64_t even = n / kLanes * kLanes;
  for (int64_t k = 0; k < n; k += kLanes) {
    const Vec v = k < even ? load(x + k) : load_first(x + k, n - k);
    top = max(top, max(v, sub(zero(), v)));
    finite = fma(v, zero(), finite);
  }
  const float largest = greatest(top), poison = sum(finite);
  // Of a row next to nothing, whose most / largest may be no float any more, zeros are left.
  const Vec up = splat(largest > 1e-30f && poison == 0 ? most / largest : 0.0f);
  for (int64_t k = 0; k < n; k += kLanes) {
    const int64_t count = k < even ? kLanes : n - k;
    float levels[kLanes] = {};
    if (poison == 0) store(levels, nearest(mul(k < even ? load(x + k) : load_first(x + k, count), up)));
    for (int64_t i = 0; i < count; ++i) out[k + i] = static_cast<int16_t>(levels[i]);
  }
  return largest / most + poison;
}

}  // namespace

void round_rows(const float* x, int64_t rows, int64_t inputs, int16_t* out, float* steps) {
  for (int64_t m = 0; m < rows; ++m) steps[m] = round_row(x + m * inputs, inputs, out + m * inputs);
}

size_t few_rows_bytes(const FewRows& p) { return many(p) ? Turned(p, nullptr).bytes() : 0; }

void few_rows(const FewRows& p, int64_t begin, int64_t end, void* workspace) {
  if (many(p)) return multiply_many(p, begin, end, Turned(p, workspace));
  if (p.scale != nullptr) return multiply_few<Int8Products>(p, begin, end);
  if (p.scalar == Scalar::kFloat) return multiply_few<FloatProducts<float>>(p, begin, end);
  multiply_few<FloatProducts<BFloat16>>(p, begin, end);
}

}  // namespace bestow::BESTOW_ISA
