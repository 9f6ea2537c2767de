// simd.h for AVX-512 F, BW, VL, DQ: 16 lanes, tails by mask registers.
#pragma once

namespace bnb::BNB_ISA {
namespace {

struct F32 {
  static constexpr int width = 16;
  __m512 v;
};
struct I32 {
  static constexpr int width = 16;
  __m512i v;
};
struct Mask {
  __mmask16 m;
};

BNB_INLINE __mmask16 low_bits(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

BNB_INLINE F32 zero() { return {_mm512_setzero_ps()}; }
BNB_INLINE F32 set1(float x) { return {_mm512_set1_ps(x)}; }
BNB_INLINE I32 zero_i32() { return {_mm512_setzero_si512()}; }
BNB_INLINE I32 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
BNB_INLINE I32 iota_i32() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

BNB_INLINE F32 bitcast(I32 x) { return {_mm512_castsi512_ps(x.v)}; }
BNB_INLINE I32 bitcast(F32 x) { return {_mm512_castps_si512(x.v)}; }

BNB_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BNB_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
BNB_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
BNB_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
BNB_INLINE F32 sqrt(F32 x) { return {_mm512_sqrt_ps(x.v)}; }
BNB_INLINE F32 round(F32 x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
BNB_INLINE F32 floor(F32 x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }

BNB_INLINE Mask lt(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
BNB_INLINE Mask le(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
BNB_INLINE Mask gt(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
BNB_INLINE Mask ge(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
BNB_INLINE Mask eq(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
BNB_INLINE Mask ne(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)}; }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.m | b.m)}; }
BNB_INLINE Mask operator~(Mask a) { return {static_cast<__mmask16>(~a.m)}; }
BNB_INLINE Mask first_n(int64_t n) { return {low_bits(n)}; }
BNB_INLINE uint32_t bits(Mask a) { return a.m; }
BNB_INLINE bool any(Mask a) { return a.m != 0; }
BNB_INLINE bool all(Mask a) { return a.m == 0xffffu; }
BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }

BNB_INLINE float reduce_add(F32 x) { return _mm512_reduce_add_ps(x.v); }
BNB_INLINE float reduce_max(F32 x) { return _mm512_reduce_max_ps(x.v); }
BNB_INLINE float reduce_min(F32 x) { return _mm512_reduce_min_ps(x.v); }

BNB_INLINE I32 to_i32(F32 x) { return {_mm512_cvtps_epi32(x.v)}; }
BNB_INLINE I32 truncate_i32(F32 x) { return {_mm512_cvttps_epi32(x.v)}; }
BNB_INLINE F32 to_f32(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
BNB_INLINE I32 shl(I32 a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 shr(I32 a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 sar(I32 a, int n) { return {_mm512_sra_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE Mask eq(I32 a, I32 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
BNB_INLINE Mask gt(I32 a, I32 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }
BNB_INLINE Mask lt(I32 a, I32 b) { return gt(b, a); }
BNB_INLINE I32 min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
BNB_INLINE int32_t reduce_add(I32 x) { return _mm512_reduce_add_epi32(x.v); }
BNB_INLINE int32_t reduce_max(I32 x) { return _mm512_reduce_max_epi32(x.v); }

// Each lane of acc += the four products of its bytes, unsigned times signed. Not the intrinsic: around that the
// compiler copies acc from register to register, at two copies a product.
BNB_INLINE void add_byte_products(I32& acc, I32 u8, I32 s8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(u8.v), "v"(s8.v));
}
BNB_INLINE bool multiplies_bytes() { return true; }

// bf16 bits in the low half of each lane.
BNB_INLINE I32 bf16_bits(F32 x) {
  const I32 u = bitcast(x);
  const I32 rounded = u + set1_i32(0x7fff) + (shr(u, 16) & set1_i32(1));
  return shr(select(ne(x, x), u | set1_i32(0x400000), rounded), 16);
}

BNB_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
BNB_INLINE F32 load(const f16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
BNB_INLINE F32 load(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
BNB_INLINE F32 load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(low_bits(n), p)}; }
BNB_INLINE F32 load_n(const f16* p, int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(low_bits(n), p))}; }
BNB_INLINE F32 load_n(const bf16* p, int64_t n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(low_bits(n), p)), 16))};
}
BNB_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
BNB_INLINE void store(f16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bf16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(x).v));
}
BNB_INLINE void store_n(float* p, F32 x, int64_t n) { _mm512_mask_storeu_ps(p, low_bits(n), x.v); }
BNB_INLINE void store_n(f16* p, F32 x, int64_t n) {
  _mm256_mask_storeu_epi16(p, low_bits(n), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store_n(bf16* p, F32 x, int64_t n) {
  _mm256_mask_storeu_epi16(p, low_bits(n), _mm512_cvtepi32_epi16(bf16_bits(x).v));
}

BNB_INLINE I32 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
BNB_INLINE I32 load_i32_n(const int32_t* p, int64_t n) { return {_mm512_maskz_loadu_epi32(low_bits(n), p)}; }
BNB_INLINE void store(int32_t* p, I32 x) { _mm512_storeu_si512(p, x.v); }
BNB_INLINE void store_n(int32_t* p, I32 x, int64_t n) { _mm512_mask_storeu_epi32(p, low_bits(n), x.v); }
BNB_INLINE I32 load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
BNB_INLINE I32 load_u8_n(const uint8_t* p, int64_t n) {
  return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(low_bits(n), p))};
}
BNB_INLINE I32 load_i8_n(const int8_t* p, int64_t n) {
  return {_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(low_bits(n), p))};
}
// The low byte of each lane.
BNB_INLINE void store_u8(uint8_t* p, I32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
BNB_INLINE void store_i8(int8_t* p, I32 x) { store_u8(reinterpret_cast<uint8_t*>(p), x); }
BNB_INLINE void store_u8_n(uint8_t* p, I32 x, int64_t n) {
  _mm_mask_storeu_epi8(p, low_bits(n), _mm512_cvtepi32_epi8(x.v));
}
BNB_INLINE void store_i8_n(int8_t* p, I32 x, int64_t n) { store_u8_n(reinterpret_cast<uint8_t*>(p), x, n); }
BNB_INLINE F32 gather(const float* p, I32 index) { return {_mm512_i32gather_ps(index.v, p, 4)}; }
BNB_INLINE I32 gather(const int32_t* p, I32 index) { return {_mm512_i32gather_epi32(index.v, p, 4)}; }

}  // namespace
}  // namespace bnb::BNB_ISA
