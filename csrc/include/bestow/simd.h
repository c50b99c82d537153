// One vector of floats, whatever the instruction set that this file is compiled for.
//
// BESTOW_ISA names the namespace, so that several builds of one source can be linked together. Nothing here or in what
// includes it may call inline functions of the C++ library: the linker would keep one copy for all instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace bestow::BESTOW_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kTileRows = 8, kTileVecs = 3, kTileSteps = 1;  // 24 accumulators of 32 registers

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const BFloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Vec load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline void store(Half* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256i rounded(Vec x) {  // to bfloat16, nearest even
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000)), 16));
#endif
}
inline void store(BFloat16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(x)); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }  // b where one is NaN
inline Vec nearest(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }  // x 2^n
inline Vec exponent(Vec x, Vec& m) {  // e of a normal number x = m 2^e above 0, m in 1 ... 2
  m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  return _mm512_getexp_ps(x);
}
inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }
inline Vec keep(Vec x, Vec other, int64_t n) { return _mm512_mask_mov_ps(other, first(n), x); }  // x in lanes below n
inline Vec where_below(Vec a, Vec b, Vec x, Vec y) {  // x where a < b, y elsewhere
  return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline void sums_of_four(const Vec (&x)[4], float* out) {  // cheaper than one by one
  const Vec a = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const Vec b = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  const Vec each = add(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(each), _mm512_extractf32x8_ps(each, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
inline float greatest(Vec x) { return _mm512_reduce_max_ps(x); }

inline void transpose(Vec (&r)[16]) {
  __m512d pairs[16];
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 4; j += 2) {
      const Vec lo = _mm512_unpacklo_ps(r[i + j], r[i + j + 1]), hi = _mm512_unpackhi_ps(r[i + j], r[i + j + 1]);
      pairs[i + j] = _mm512_castps_pd(lo), pairs[i + j + 1] = _mm512_castps_pd(hi);
    }
  }
  Vec quads[16];  // quads[4 g + c], 128-bit lane l: column 4 l + c of rows 4 g ... 4 g + 3
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i], pairs[i + 2]));
    quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i], pairs[i + 2]));
    quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i + 1], pairs[i + 3]));
    quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i + 1], pairs[i + 3]));
  }
  for (int c = 0; c < 4; ++c) {
    const Vec a = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);       // lanes 0 2 of groups 0 1
    const Vec b = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);       // lanes 1 3
    const Vec d = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);  // the same of groups 2 3
    const Vec e = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(a, d, 0x88);
    r[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(a, d, 0xdd);
    r[12 + c] = _mm512_shuffle_f32x4(b, e, 0xdd);
  }
}

#elif defined(__AVX2__)

using Vec = __m256;
constexpr int kLanes = 8;
// 12 accumulators of 16 registers. Eight steps of a product's depth in a row: with so few multiplications each,
// counting them costs.
constexpr int kTileRows = 4, kTileVecs = 3, kTileSteps = 8;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline void store(Half* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(BFloat16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec nearest(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power(Vec x, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}
inline Vec exponent(Vec x, Vec& m) {
  const __m256i bits = _mm256_castps_si256(x), one = _mm256_castps_si256(_mm256_set1_ps(1.0f));
  m = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)), one));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(127)));
}
inline __m256i below(int64_t n) {  // which lanes are
  const int count = n >= 8 ? 8 : n <= 0 ? 0 : static_cast<int>(n);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec keep(Vec x, Vec other, int64_t n) { return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(below(n))); }
inline Vec where_below(Vec a, Vec b, Vec x, Vec y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline float sum(Vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline void sums_of_four(const Vec (&x)[4], float* out) {
  const Vec a = add(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
  const Vec b = add(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
  const __m256d c = _mm256_castps_pd(a), d = _mm256_castps_pd(b);
  const Vec each = add(_mm256_castpd_ps(_mm256_unpacklo_pd(c, d)), _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(each), _mm256_extractf128_ps(each, 1)));
}
inline float greatest(Vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline void transpose(Vec (&r)[8]) {
  Vec t[8], quads[8];
  for (int i = 0; i < 8; i += 2)
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44), quads[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44),
              quads[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x20);
    r[4 + c] = _mm256_permute2f128_ps(quads[c], quads[4 + c], 0x31);
  }
}

#else

typedef float Vec __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kTileRows = 4, kTileVecs = 2, kTileSteps = 1;

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float widen(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // Scaling by 2^112 moves the exponent's bias, subnormal numbers included.
  return from_bits(sign | to_bits(from_bits(rest << 13) * 0x1p112f));
}
inline BFloat16 narrow_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline Half narrow_half(float x) {
  const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000u;
  const float size = from_bits(bits & 0x7fffffffu);
  uint32_t rest;
  if (x != x) {
    rest = 0x7e00u;
  } else if (size >= 65520.0f) {
    rest = 0x7c00u;
  } else if (size < 0x1p-14f) {  // subnormal: adding 0.5 leaves the mantissa rounded in the lowest bits
    rest = to_bits(size + 0.5f) - to_bits(0.5f);
  } else {
    const uint32_t raw = bits & 0x7fffffffu;
    rest = (raw + 0xfffu + (raw >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<uint16_t>(sign | rest)};
}

inline Vec zero() { return Vec{0, 0, 0, 0}; }
inline Vec splat(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Vec load(const BFloat16* p) { return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline Vec load(const Half* p) { return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline void store(BFloat16* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = narrow_bfloat16(x[i]);
}
inline void store(Half* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = narrow_half(x[i]);
}
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec nearest(Vec x) {  // of numbers below 2^22
  const Vec magic = splat(0x1.8p23f);
  return (x + magic) - magic;
}
inline Vec times_power(Vec x, Vec n) {
  for (int i = 0; i < 4; ++i)
    x[i] *= n[i] == n[i] ? from_bits(static_cast<uint32_t>(static_cast<int>(n[i]) + 127) << 23) : n[i];
  return x;
}
inline Vec exponent(Vec x, Vec& m) {
  Vec e;
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = to_bits(x[i]);
    m[i] = from_bits((bits & 0x7fffffu) | to_bits(1.0f)), e[i] = static_cast<float>(static_cast<int>(bits >> 23) - 127);
  }
  return e;
}
inline Vec keep(Vec x, Vec other, int64_t n) {
  for (int i = 0; i < 4; ++i) x[i] = i < n ? x[i] : other[i];
  return x;
}
inline Vec where_below(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
inline float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
inline void sums_of_four(const Vec (&x)[4], float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum(x[i]);
}
inline float greatest(Vec x) {
  float most = x[0];
  for (int i = 1; i < 4; ++i) most = most > x[i] ? most : x[i];
  return most;
}
inline void transpose(Vec (&r)[4]) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < i; ++j) {
      const float x = r[i][j];
      r[i][j] = r[j][i], r[j][i] = x;
    }
  }
}

#endif

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kLeastPower = -126.0f;  // of two that is a normal number

// 2^(r + n) for r in -1/2 ... 1/2 and whole n, relative error 8e-8.
inline Vec power_of_two(Vec r, Vec n) {
  Vec p = splat(1.535336e-4f);
  p = fma(p, r, splat(1.3398875e-3f));
  p = fma(p, r, splat(9.6184374e-3f));
  p = fma(p, r, splat(5.5503325e-2f));
  p = fma(p, r, splat(2.4022648e-1f));
  p = fma(p, r, splat(6.931472e-1f));
  p = fma(p, r, splat(1.0f));
  return times_power(p, n);
}

// 2^x for x <= 0; what is smaller than any normal number becomes the smallest of them. NaN stays NaN.
inline Vec exp2_negative(Vec x) {
  x = max(splat(kLeastPower), x);
  const Vec n = nearest(x);
  return power_of_two(sub(x, n), n);
}

// e^x for x <= 0, relative error 2e-7; NaN stays NaN.
inline Vec exp_negative(Vec x) {
  x = max(splat(-87.0f), x);
  const Vec n = nearest(mul(x, splat(kLog2E)));
  // log2 e in two parts, and no rounding between the product and the difference.
  return power_of_two(fma(x, splat(1.925963e-8f), fma(x, splat(kLog2E), sub(zero(), n))), n);
}

// The first n < kLanes elements; the other lanes are 0.
#if defined(__AVX512F__)
inline Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void store_first(float* p, Vec x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
#elif defined(__AVX2__)
inline Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, below(n)); }
inline void store_first(float* p, Vec x, int64_t n) { _mm256_maskstore_ps(p, below(n), x); }
#endif
template <class T>
inline Vec load_first(const T* p, int64_t n) {
  T some[kLanes] = {};
  std::memcpy(some, p, n * sizeof(T));
  return load(some);
}
template <class T>
inline void store_first(T* p, Vec x, int64_t n) {
  T some[kLanes];
  store(some, x);
  std::memcpy(p, some, n * sizeof(T));
}

// The first n, all of them if there are so many.
inline Vec load_some(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_first(p, n); }
inline void store_some(float* p, Vec x, int64_t n) { n >= kLanes ? store(p, x) : store_first(p, x, n); }

}  // namespace bestow::BESTOW_ISA
