// simd.h for AVX2, FMA and F16C: 8 lanes; masks are vectors of all-ones or all-zeros lanes.
#pragma once

namespace bnb::BNB_ISA {
namespace {

struct F32 {
  static constexpr int width = 8;
  __m256 v;
};
struct I32 {
  static constexpr int width = 8;
  __m256i v;
};
struct Mask {
  __m256 m;
};

BNB_INLINE F32 zero() { return {_mm256_setzero_ps()}; }
BNB_INLINE F32 set1(float x) { return {_mm256_set1_ps(x)}; }
BNB_INLINE I32 zero_i32() { return {_mm256_setzero_si256()}; }
BNB_INLINE I32 set1_i32(int32_t x) { return {_mm256_set1_epi32(x)}; }
BNB_INLINE I32 iota_i32() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }

BNB_INLINE F32 bitcast(I32 x) { return {_mm256_castsi256_ps(x.v)}; }
BNB_INLINE I32 bitcast(F32 x) { return {_mm256_castps_si256(x.v)}; }

BNB_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
BNB_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
BNB_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
BNB_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
BNB_INLINE F32 sqrt(F32 x) { return {_mm256_sqrt_ps(x.v)}; }
BNB_INLINE F32 round(F32 x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
BNB_INLINE F32 floor(F32 x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }

BNB_INLINE Mask lt(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
BNB_INLINE Mask le(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
BNB_INLINE Mask gt(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
BNB_INLINE Mask ge(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
BNB_INLINE Mask eq(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
BNB_INLINE Mask ne(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)}; }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.m, b.m)}; }
BNB_INLINE Mask operator~(Mask a) { return {_mm256_xor_ps(a.m, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))}; }
BNB_INLINE Mask first_n(int64_t n) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), iota_i32().v))};
}
BNB_INLINE uint32_t bits(Mask a) { return static_cast<uint32_t>(_mm256_movemask_ps(a.m)); }
BNB_INLINE bool any(Mask a) { return bits(a) != 0; }
BNB_INLINE bool all(Mask a) { return bits(a) == 0xffu; }
BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.m))}; }

BNB_INLINE float reduce_add(F32 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
BNB_INLINE float reduce_max(F32 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
BNB_INLINE float reduce_min(F32 x) {
  __m128 s = _mm_min_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  s = _mm_min_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_min_ss(s, _mm_shuffle_ps(s, s, 1)));
}

BNB_INLINE I32 to_i32(F32 x) { return {_mm256_cvtps_epi32(x.v)}; }
BNB_INLINE I32 truncate_i32(F32 x) { return {_mm256_cvttps_epi32(x.v)}; }
BNB_INLINE F32 to_f32(I32 x) { return {_mm256_cvtepi32_ps(x.v)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
BNB_INLINE I32 shl(I32 a, int n) { return {_mm256_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 shr(I32 a, int n) { return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 sar(I32 a, int n) { return {_mm256_sra_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE Mask eq(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))}; }
BNB_INLINE Mask gt(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))}; }
BNB_INLINE Mask lt(I32 a, I32 b) { return gt(b, a); }
BNB_INLINE I32 min(I32 a, I32 b) { return {_mm256_min_epi32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
BNB_INLINE int32_t reduce_add(I32 x) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x.v), _mm256_extracti128_si256(x.v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
BNB_INLINE int32_t reduce_max(I32 x) {
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(x.v), _mm256_extracti128_si256(x.v, 1));
  s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// AVX-VNNI, where multiplies_bytes(): each lane of acc += the four products of its bytes, unsigned times signed. Older
// compilers come with assemblers that do not know it.
#if defined(__clang__) ? __clang_major__ >= 12 && !defined(__apple_build_version__) : __GNUC__ >= 11
BNB_INLINE bool multiplies_bytes() { return has_avx_vnni(); }
BNB_INLINE void add_byte_products(I32& acc, I32 u8, I32 s8) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.v) : "x"(u8.v), "x"(s8.v));
}
#else
BNB_INLINE bool multiplies_bytes() { return false; }
BNB_INLINE void add_byte_products(I32&, I32, I32) { __builtin_unreachable(); }
#endif

// bf16 bits of the 8 lanes, in order.
BNB_INLINE __m128i bf16_bits(F32 x) {
  const I32 u = bitcast(x);
  const I32 rounded = u + set1_i32(0x7fff) + (shr(u, 16) & set1_i32(1));
  const I32 h = shr(select(ne(x, x), u | set1_i32(0x400000), rounded), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(h.v), _mm256_extracti128_si256(h.v, 1));
}
// The first n of 8 halves, without touching the rest.
BNB_INLINE __m128i load_halves(const void* p, int64_t n) {
  alignas(16) uint16_t h[8] = {};
  for (int64_t i = 0; i < n; i++) h[i] = static_cast<const uint16_t*>(p)[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(h));
}
BNB_INLINE void store_halves(void* p, __m128i x, int64_t n) {
  alignas(16) uint16_t h[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(h), x);
  for (int64_t i = 0; i < n; i++) static_cast<uint16_t*>(p)[i] = h[i];
}

BNB_INLINE F32 widen_bf16(__m128i h) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))}; }

BNB_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
BNB_INLINE F32 load(const f16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
BNB_INLINE F32 load(const bf16* p) { return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
BNB_INLINE F32 load_n(const float* p, int64_t n) { return {_mm256_maskload_ps(p, _mm256_castps_si256(first_n(n).m))}; }
BNB_INLINE F32 load_n(const f16* p, int64_t n) { return {_mm256_cvtph_ps(load_halves(p, n))}; }
BNB_INLINE F32 load_n(const bf16* p, int64_t n) { return widen_bf16(load_halves(p, n)); }
BNB_INLINE void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
BNB_INLINE void store(f16* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bf16* p, F32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16_bits(x)); }
BNB_INLINE void store_n(float* p, F32 x, int64_t n) { _mm256_maskstore_ps(p, _mm256_castps_si256(first_n(n).m), x.v); }
BNB_INLINE void store_n(f16* p, F32 x, int64_t n) {
  store_halves(p, _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT), n);
}
BNB_INLINE void store_n(bf16* p, F32 x, int64_t n) { store_halves(p, bf16_bits(x), n); }

BNB_INLINE I32 load_i32(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
BNB_INLINE I32 load_i32_n(const int32_t* p, int64_t n) {
  return {_mm256_maskload_epi32(p, _mm256_castps_si256(first_n(n).m))};
}
BNB_INLINE void store(int32_t* p, I32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
BNB_INLINE void store_n(int32_t* p, I32 x, int64_t n) {
  _mm256_maskstore_epi32(p, _mm256_castps_si256(first_n(n).m), x.v);
}
BNB_INLINE I32 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_u8_n(const uint8_t* p, int64_t n) {
  alignas(8) uint8_t t[8] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_u8(t);
}
BNB_INLINE I32 load_i8_n(const int8_t* p, int64_t n) {
  alignas(8) int8_t t[8] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i8(t);
}
// The low byte of each lane.
BNB_INLINE void store_u8(uint8_t* p, I32 x) {
  const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i b = _mm256_shuffle_epi8(x.v, low);
  const __m128i packed = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), packed);
}
BNB_INLINE void store_i8(int8_t* p, I32 x) { store_u8(reinterpret_cast<uint8_t*>(p), x); }
BNB_INLINE void store_u8_n(uint8_t* p, I32 x, int64_t n) {
  alignas(8) uint8_t t[8];
  store_u8(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE void store_i8_n(int8_t* p, I32 x, int64_t n) { store_u8_n(reinterpret_cast<uint8_t*>(p), x, n); }
BNB_INLINE F32 gather(const float* p, I32 index) { return {_mm256_i32gather_ps(p, index.v, 4)}; }
BNB_INLINE I32 gather(const int32_t* p, I32 index) { return {_mm256_i32gather_epi32(p, index.v, 4)}; }

}  // namespace
}  // namespace bnb::BNB_ISA
