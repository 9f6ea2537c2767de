// simd.h for any x86-64: SSE2, 4 lanes. What SSE2 lacks is spelled out: fma rounds twice, 16-bit floats are
// converted with integer arithmetic, gathers are four loads.
#pragma once

namespace bnb::BNB_ISA {
namespace {

struct F32 {
  static constexpr int width = 4;
  __m128 v;
};
struct I32 {
  static constexpr int width = 4;
  __m128i v;
};
struct Mask {
  __m128 m;
};

BNB_INLINE F32 zero() { return {_mm_setzero_ps()}; }
BNB_INLINE F32 set1(float x) { return {_mm_set1_ps(x)}; }
BNB_INLINE I32 zero_i32() { return {_mm_setzero_si128()}; }
BNB_INLINE I32 set1_i32(int32_t x) { return {_mm_set1_epi32(x)}; }
BNB_INLINE I32 iota_i32() { return {_mm_setr_epi32(0, 1, 2, 3)}; }

BNB_INLINE F32 bitcast(I32 x) { return {_mm_castsi128_ps(x.v)}; }
BNB_INLINE I32 bitcast(F32 x) { return {_mm_castps_si128(x.v)}; }

BNB_INLINE F32 operator+(F32 a, F32 b) { return {_mm_add_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {_mm_sub_ps(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {_mm_mul_ps(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {_mm_div_ps(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a) { return {_mm_xor_ps(a.v, _mm_set1_ps(-0.0f))}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
BNB_INLINE F32 fnma(F32 a, F32 b, F32 c) { return c - a * b; }
BNB_INLINE F32 min(F32 a, F32 b) { return {_mm_min_ps(a.v, b.v)}; }
BNB_INLINE F32 max(F32 a, F32 b) { return {_mm_max_ps(a.v, b.v)}; }
BNB_INLINE F32 sqrt(F32 x) { return {_mm_sqrt_ps(x.v)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {_mm_add_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {_mm_sub_epi32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) {
  const __m128i even = _mm_mul_epu32(a.v, b.v);
  const __m128i odd = _mm_mul_epu32(_mm_srli_epi64(a.v, 32), _mm_srli_epi64(b.v, 32));
  return {_mm_unpacklo_epi32(_mm_shuffle_epi32(even, 0x08), _mm_shuffle_epi32(odd, 0x08))};
}
BNB_INLINE I32 operator&(I32 a, I32 b) { return {_mm_and_si128(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {_mm_or_si128(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {_mm_xor_si128(a.v, b.v)}; }
BNB_INLINE I32 shl(I32 a, int n) { return {_mm_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 shr(I32 a, int n) { return {_mm_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
BNB_INLINE I32 sar(I32 a, int n) { return {_mm_sra_epi32(a.v, _mm_cvtsi32_si128(n))}; }

BNB_INLINE Mask lt(F32 a, F32 b) { return {_mm_cmplt_ps(a.v, b.v)}; }
BNB_INLINE Mask le(F32 a, F32 b) { return {_mm_cmple_ps(a.v, b.v)}; }
BNB_INLINE Mask gt(F32 a, F32 b) { return {_mm_cmpgt_ps(a.v, b.v)}; }
BNB_INLINE Mask ge(F32 a, F32 b) { return {_mm_cmpge_ps(a.v, b.v)}; }
BNB_INLINE Mask eq(F32 a, F32 b) { return {_mm_cmpeq_ps(a.v, b.v)}; }
BNB_INLINE Mask ne(F32 a, F32 b) { return {_mm_cmpneq_ps(a.v, b.v)}; }
BNB_INLINE Mask eq(I32 a, I32 b) { return {_mm_castsi128_ps(_mm_cmpeq_epi32(a.v, b.v))}; }
BNB_INLINE Mask gt(I32 a, I32 b) { return {_mm_castsi128_ps(_mm_cmpgt_epi32(a.v, b.v))}; }
BNB_INLINE Mask lt(I32 a, I32 b) { return gt(b, a); }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {_mm_and_ps(a.m, b.m)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {_mm_or_ps(a.m, b.m)}; }
BNB_INLINE Mask operator~(Mask a) { return {_mm_xor_ps(a.m, _mm_castsi128_ps(_mm_set1_epi32(-1)))}; }
BNB_INLINE Mask first_n(int64_t n) { return gt(set1_i32(static_cast<int32_t>(n)), iota_i32()); }
BNB_INLINE uint32_t bits(Mask a) { return static_cast<uint32_t>(_mm_movemask_ps(a.m)); }
BNB_INLINE bool any(Mask a) { return bits(a) != 0; }
BNB_INLINE bool all(Mask a) { return bits(a) == 0xfu; }
BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {_mm_or_ps(_mm_and_ps(m.m, a.v), _mm_andnot_ps(m.m, b.v))}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return bitcast(select(m, bitcast(a), bitcast(b))); }
BNB_INLINE I32 min(I32 a, I32 b) { return select(gt(a, b), b, a); }
BNB_INLINE I32 max(I32 a, I32 b) { return select(gt(a, b), a, b); }

BNB_INLINE I32 to_i32(F32 x) { return {_mm_cvtps_epi32(x.v)}; }
BNB_INLINE I32 truncate_i32(F32 x) { return {_mm_cvttps_epi32(x.v)}; }
BNB_INLINE F32 to_f32(I32 x) { return {_mm_cvtepi32_ps(x.v)}; }
// Adding and subtracting 2^23 rounds to nearest even; larger magnitudes are whole already. The sign of x is
// kept so that -0.25 gives -0.
BNB_INLINE F32 round(F32 x) {
  const F32 sign = {_mm_and_ps(x.v, _mm_set1_ps(-0.0f))};
  const F32 magnitude = {_mm_andnot_ps(_mm_set1_ps(-0.0f), x.v)};
  const F32 big = set1(8388608.0f);
  const F32 whole = (magnitude + big) - big;
  return select(lt(magnitude, big), F32{_mm_or_ps(whole.v, sign.v)}, x);
}
BNB_INLINE F32 floor(F32 x) {
  const F32 r = round(x);
  const F32 lower = r - set1(1.0f);
  return select(gt(r, x), lower, r);
}

BNB_INLINE float reduce_add(F32 x) {
  const __m128 s = _mm_add_ps(x.v, _mm_movehl_ps(x.v, x.v));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
BNB_INLINE float reduce_max(F32 x) {
  const __m128 s = _mm_max_ps(x.v, _mm_movehl_ps(x.v, x.v));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
BNB_INLINE float reduce_min(F32 x) {
  const __m128 s = _mm_min_ps(x.v, _mm_movehl_ps(x.v, x.v));
  return _mm_cvtss_f32(_mm_min_ss(s, _mm_shuffle_ps(s, s, 1)));
}
BNB_INLINE int32_t reduce_add(I32 x) {
  const __m128i s = _mm_add_epi32(x.v, _mm_shuffle_epi32(x.v, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
BNB_INLINE int32_t reduce_max(I32 x) {
  const I32 s = max(x, I32{_mm_shuffle_epi32(x.v, 0x4e)});
  return _mm_cvtsi128_si32(max(s, I32{_mm_shuffle_epi32(s.v, 0xb1)}).v);
}

// The low halves of 4 lanes as 4 consecutive 16-bit values (packs would saturate without the sign shift).
BNB_INLINE __m128i pack_halves(I32 x) {
  const __m128i s = _mm_srai_epi32(_mm_slli_epi32(x.v, 16), 16);
  return _mm_packs_epi32(s, s);
}
BNB_INLINE I32 widen_halves(__m128i h) { return {_mm_unpacklo_epi16(h, _mm_setzero_si128())}; }
BNB_INLINE F32 f16_to_f32(I32 h) {
  const I32 magnitude = h & set1_i32(0x7fff);
  const I32 sign = shl(h & set1_i32(0x8000), 16);
  // The exponent moves by a multiplication, which also normalizes subnormals.
  const F32 value = bitcast(shl(magnitude, 13)) * set1(5.192296858534828e33f);  // 2^112
  const I32 special = select(gt(magnitude, set1_i32(0x7bff)), set1_i32(0x7f800000), zero_i32());
  return bitcast(bitcast(value) | special | sign);
}
BNB_INLINE I32 f32_to_f16(F32 x) {
  const I32 u = bitcast(x);
  const I32 sign = shr(u, 16) & set1_i32(0x8000);
  const I32 magnitude = u & set1_i32(0x7fffffff);
  const I32 normal = shr(magnitude + set1_i32(0xfff - 0x38000000) + (shr(magnitude, 13) & set1_i32(1)), 13);
  // Adding 0.5 leaves the rounded count of 2^-24 steps in the low bits.
  const I32 subnormal = bitcast(bitcast(magnitude) + set1(0.5f)) & set1_i32(0x7ff);
  I32 h = select(lt(magnitude, set1_i32(0x38800000)), subnormal, normal);
  h = select(gt(magnitude, set1_i32(0x477fefff)), set1_i32(0x7c00), h);  // rounds to infinity
  h = select(gt(magnitude, set1_i32(0x7f800000)), set1_i32(0x7e00), h);
  return h | sign;
}
BNB_INLINE F32 bf16_to_f32(I32 h) { return bitcast(shl(h, 16)); }
BNB_INLINE I32 f32_to_bf16(F32 x) {
  const I32 u = bitcast(x);
  const I32 rounded = u + set1_i32(0x7fff) + (shr(u, 16) & set1_i32(1));
  return shr(select(ne(x, x), u | set1_i32(0x400000), rounded), 16);
}
BNB_INLINE I32 load_halves(const void* p) { return widen_halves(_mm_loadl_epi64(static_cast<const __m128i*>(p))); }
BNB_INLINE I32 load_halves_n(const void* p, int64_t n) {
  alignas(8) uint16_t h[4] = {};
  for (int64_t i = 0; i < n; i++) h[i] = static_cast<const uint16_t*>(p)[i];
  return load_halves(h);
}
BNB_INLINE void store_halves(void* p, I32 x) { _mm_storel_epi64(static_cast<__m128i*>(p), pack_halves(x)); }
BNB_INLINE void store_halves_n(void* p, I32 x, int64_t n) {
  alignas(8) uint16_t h[4];
  store_halves(h, x);
  for (int64_t i = 0; i < n; i++) static_cast<uint16_t*>(p)[i] = h[i];
}

BNB_INLINE F32 load(const float* p) { return {_mm_loadu_ps(p)}; }
BNB_INLINE F32 load(const f16* p) { return f16_to_f32(load_halves(p)); }
BNB_INLINE F32 load(const bf16* p) { return bf16_to_f32(load_halves(p)); }
BNB_INLINE F32 load_n(const float* p, int64_t n) {
  alignas(16) float t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return {_mm_load_ps(t)};
}
BNB_INLINE F32 load_n(const f16* p, int64_t n) { return f16_to_f32(load_halves_n(p, n)); }
BNB_INLINE F32 load_n(const bf16* p, int64_t n) { return bf16_to_f32(load_halves_n(p, n)); }
BNB_INLINE void store(float* p, F32 x) { _mm_storeu_ps(p, x.v); }
BNB_INLINE void store(f16* p, F32 x) { store_halves(p, f32_to_f16(x)); }
BNB_INLINE void store(bf16* p, F32 x) { store_halves(p, f32_to_bf16(x)); }
BNB_INLINE void store_n(float* p, F32 x, int64_t n) {
  alignas(16) float t[4];
  _mm_store_ps(t, x.v);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE void store_n(f16* p, F32 x, int64_t n) { store_halves_n(p, f32_to_f16(x), n); }
BNB_INLINE void store_n(bf16* p, F32 x, int64_t n) { store_halves_n(p, f32_to_bf16(x), n); }

BNB_INLINE I32 load_i32(const int32_t* p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))}; }
BNB_INLINE I32 load_i32_n(const int32_t* p, int64_t n) {
  alignas(16) int32_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i32(t);
}
BNB_INLINE void store(int32_t* p, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), x.v); }
BNB_INLINE void store_n(int32_t* p, I32 x, int64_t n) {
  alignas(16) int32_t t[4];
  store(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE I32 load_u8(const uint8_t* p) { return {_mm_setr_epi32(p[0], p[1], p[2], p[3])}; }
BNB_INLINE I32 load_i8(const int8_t* p) { return {_mm_setr_epi32(p[0], p[1], p[2], p[3])}; }
BNB_INLINE I32 load_u8_n(const uint8_t* p, int64_t n) {
  uint8_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_u8(t);
}
BNB_INLINE I32 load_i8_n(const int8_t* p, int64_t n) {
  int8_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i8(t);
}
// The low byte of each lane.
BNB_INLINE void store_u8(uint8_t* p, I32 x) {
  const __m128i h = pack_halves(x & set1_i32(0xff));
  const int32_t b = _mm_cvtsi128_si32(_mm_packus_epi16(h, h));
  __builtin_memcpy(p, &b, 4);
}
BNB_INLINE void store_i8(int8_t* p, I32 x) { store_u8(reinterpret_cast<uint8_t*>(p), x); }
BNB_INLINE void store_u8_n(uint8_t* p, I32 x, int64_t n) {
  uint8_t t[4];
  store_u8(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE void store_i8_n(int8_t* p, I32 x, int64_t n) { store_u8_n(reinterpret_cast<uint8_t*>(p), x, n); }
BNB_INLINE F32 gather(const float* p, I32 index) {
  alignas(16) int32_t i[4];
  store(i, index);
  return {_mm_setr_ps(p[i[0]], p[i[1]], p[i[2]], p[i[3]])};
}
BNB_INLINE I32 gather(const int32_t* p, I32 index) {
  alignas(16) int32_t i[4];
  store(i, index);
  return {_mm_setr_epi32(p[i[0]], p[i[1]], p[i[2]], p[i[3]])};
}

}  // namespace
}  // namespace bnb::BNB_ISA
