// simd.h for arm64: NEON, 4 lanes, fused fma, native float16 conversions.
#pragma once

namespace bnb::BNB_ISA {
namespace {

struct F32 {
  static constexpr int width = 4;
  float32x4_t v;
};
struct I32 {
  static constexpr int width = 4;
  int32x4_t v;
};
struct Mask {
  uint32x4_t m;
};

BNB_INLINE F32 zero() { return {vdupq_n_f32(0.0f)}; }
BNB_INLINE F32 set1(float x) { return {vdupq_n_f32(x)}; }
BNB_INLINE I32 zero_i32() { return {vdupq_n_s32(0)}; }
BNB_INLINE I32 set1_i32(int32_t x) { return {vdupq_n_s32(x)}; }
BNB_INLINE I32 load_i32(const int32_t* p) { return {vld1q_s32(p)}; }
BNB_INLINE I32 iota_i32() {
  constexpr int32_t lanes[4] = {0, 1, 2, 3};
  return load_i32(lanes);
}

BNB_INLINE F32 bitcast(I32 x) { return {vreinterpretq_f32_s32(x.v)}; }
BNB_INLINE I32 bitcast(F32 x) { return {vreinterpretq_s32_f32(x.v)}; }

BNB_INLINE Mask lt(F32 a, F32 b) { return {vcltq_f32(a.v, b.v)}; }
BNB_INLINE Mask le(F32 a, F32 b) { return {vcleq_f32(a.v, b.v)}; }
BNB_INLINE Mask gt(F32 a, F32 b) { return {vcgtq_f32(a.v, b.v)}; }
BNB_INLINE Mask ge(F32 a, F32 b) { return {vcgeq_f32(a.v, b.v)}; }
BNB_INLINE Mask eq(F32 a, F32 b) { return {vceqq_f32(a.v, b.v)}; }
BNB_INLINE Mask ne(F32 a, F32 b) { return {vmvnq_u32(vceqq_f32(a.v, b.v))}; }
BNB_INLINE Mask eq(I32 a, I32 b) { return {vceqq_s32(a.v, b.v)}; }
BNB_INLINE Mask gt(I32 a, I32 b) { return {vcgtq_s32(a.v, b.v)}; }
BNB_INLINE Mask lt(I32 a, I32 b) { return {vcltq_s32(a.v, b.v)}; }
BNB_INLINE Mask operator&(Mask a, Mask b) { return {vandq_u32(a.m, b.m)}; }
BNB_INLINE Mask operator|(Mask a, Mask b) { return {vorrq_u32(a.m, b.m)}; }
BNB_INLINE Mask operator~(Mask a) { return {vmvnq_u32(a.m)}; }
BNB_INLINE Mask first_n(int64_t n) { return gt(set1_i32(static_cast<int32_t>(n)), iota_i32()); }
BNB_INLINE uint32_t bits(Mask a) {
  constexpr uint32_t weights[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(a.m, vld1q_u32(weights)));
}
BNB_INLINE bool any(Mask a) { return vmaxvq_u32(a.m) != 0; }
BNB_INLINE bool all(Mask a) { return vminvq_u32(a.m) != 0; }
BNB_INLINE F32 select(Mask m, F32 a, F32 b) { return {vbslq_f32(m.m, a.v, b.v)}; }
BNB_INLINE I32 select(Mask m, I32 a, I32 b) { return {vbslq_s32(m.m, a.v, b.v)}; }

BNB_INLINE F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.v, b.v)}; }
BNB_INLINE F32 operator-(F32 a) { return {vnegq_f32(a.v)}; }
BNB_INLINE F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
BNB_INLINE F32 fnma(F32 a, F32 b, F32 c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
BNB_INLINE F32 min(F32 a, F32 b) { return select(lt(a, b), a, b); }
BNB_INLINE F32 max(F32 a, F32 b) { return select(gt(a, b), a, b); }
BNB_INLINE F32 sqrt(F32 x) { return {vsqrtq_f32(x.v)}; }
BNB_INLINE F32 round(F32 x) { return {vrndnq_f32(x.v)}; }
BNB_INLINE F32 floor(F32 x) { return {vrndmq_f32(x.v)}; }

BNB_INLINE I32 operator+(I32 a, I32 b) { return {vaddq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator-(I32 a, I32 b) { return {vsubq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator*(I32 a, I32 b) { return {vmulq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator&(I32 a, I32 b) { return {vandq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator|(I32 a, I32 b) { return {vorrq_s32(a.v, b.v)}; }
BNB_INLINE I32 operator^(I32 a, I32 b) { return {veorq_s32(a.v, b.v)}; }
BNB_INLINE I32 shl(I32 a, int n) { return {vshlq_s32(a.v, vdupq_n_s32(n))}; }
BNB_INLINE I32 shr(I32 a, int n) {
  return {vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.v), vdupq_n_s32(-n)))};
}
BNB_INLINE I32 sar(I32 a, int n) { return {vshlq_s32(a.v, vdupq_n_s32(-n))}; }
BNB_INLINE I32 min(I32 a, I32 b) { return {vminq_s32(a.v, b.v)}; }
BNB_INLINE I32 max(I32 a, I32 b) { return {vmaxq_s32(a.v, b.v)}; }

BNB_INLINE float reduce_add(F32 x) { return vaddvq_f32(x.v); }
BNB_INLINE float reduce_max(F32 x) { return vmaxvq_f32(x.v); }
BNB_INLINE float reduce_min(F32 x) { return vminvq_f32(x.v); }
BNB_INLINE int32_t reduce_add(I32 x) { return vaddvq_s32(x.v); }
BNB_INLINE int32_t reduce_max(I32 x) { return vmaxvq_s32(x.v); }

BNB_INLINE I32 to_i32(F32 x) { return {vcvtnq_s32_f32(x.v)}; }
BNB_INLINE I32 truncate_i32(F32 x) { return {vcvtq_s32_f32(x.v)}; }
BNB_INLINE F32 to_f32(I32 x) { return {vcvtq_f32_s32(x.v)}; }

BNB_INLINE F32 f16_to_f32(uint16x4_t h) { return {vcvt_f32_f16(vreinterpret_f16_u16(h))}; }
BNB_INLINE uint16x4_t f32_to_f16(F32 x) { return vreinterpret_u16_f16(vcvt_f16_f32(x.v)); }
BNB_INLINE F32 bf16_to_f32(uint16x4_t h) { return {vreinterpretq_f32_u32(vshll_n_u16(h, 16))}; }
BNB_INLINE uint16x4_t f32_to_bf16(F32 x) {
  const I32 u = bitcast(x);
  const I32 rounded = u + set1_i32(0x7fff) + (shr(u, 16) & set1_i32(1));
  const I32 h = select(ne(x, x), u | set1_i32(0x400000), rounded);
  return vshrn_n_u32(vreinterpretq_u32_s32(h.v), 16);
}
BNB_INLINE uint16x4_t load_halves(const void* p) { return vld1_u16(static_cast<const uint16_t*>(p)); }
BNB_INLINE uint16x4_t load_halves_n(const void* p, int64_t n) {
  uint16_t h[4] = {};
  for (int64_t i = 0; i < n; i++) h[i] = static_cast<const uint16_t*>(p)[i];
  return vld1_u16(h);
}
BNB_INLINE void store_halves(void* p, uint16x4_t x) { vst1_u16(static_cast<uint16_t*>(p), x); }
BNB_INLINE void store_halves_n(void* p, uint16x4_t x, int64_t n) {
  uint16_t h[4];
  vst1_u16(h, x);
  for (int64_t i = 0; i < n; i++) static_cast<uint16_t*>(p)[i] = h[i];
}

BNB_INLINE F32 load(const float* p) { return {vld1q_f32(p)}; }
BNB_INLINE F32 load(const f16* p) { return f16_to_f32(load_halves(p)); }
BNB_INLINE F32 load(const bf16* p) { return bf16_to_f32(load_halves(p)); }
BNB_INLINE F32 load_n(const float* p, int64_t n) {
  float t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load(t);
}
BNB_INLINE F32 load_n(const f16* p, int64_t n) { return f16_to_f32(load_halves_n(p, n)); }
BNB_INLINE F32 load_n(const bf16* p, int64_t n) { return bf16_to_f32(load_halves_n(p, n)); }
BNB_INLINE void store(float* p, F32 x) { vst1q_f32(p, x.v); }
BNB_INLINE void store(f16* p, F32 x) { store_halves(p, f32_to_f16(x)); }
BNB_INLINE void store(bf16* p, F32 x) { store_halves(p, f32_to_bf16(x)); }
BNB_INLINE void store_n(float* p, F32 x, int64_t n) {
  float t[4];
  store(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE void store_n(f16* p, F32 x, int64_t n) { store_halves_n(p, f32_to_f16(x), n); }
BNB_INLINE void store_n(bf16* p, F32 x, int64_t n) { store_halves_n(p, f32_to_bf16(x), n); }

BNB_INLINE I32 load_i32_n(const int32_t* p, int64_t n) {
  int32_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i32(t);
}
BNB_INLINE void store(int32_t* p, I32 x) { vst1q_s32(p, x.v); }
BNB_INLINE void store_n(int32_t* p, I32 x, int64_t n) {
  int32_t t[4];
  store(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
}
BNB_INLINE I32 load_u8(const uint8_t* p) {
  const int32_t t[4] = {p[0], p[1], p[2], p[3]};
  return load_i32(t);
}
BNB_INLINE I32 load_i8(const int8_t* p) {
  const int32_t t[4] = {p[0], p[1], p[2], p[3]};
  return load_i32(t);
}
BNB_INLINE I32 load_u8_n(const uint8_t* p, int64_t n) {
  int32_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i32(t);
}
BNB_INLINE I32 load_i8_n(const int8_t* p, int64_t n) {
  int32_t t[4] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load_i32(t);
}
// The low byte of each lane.
BNB_INLINE void store_u8_n(uint8_t* p, I32 x, int64_t n) {
  int32_t t[4];
  store(t, x);
  for (int64_t i = 0; i < n; i++) p[i] = static_cast<uint8_t>(t[i]);
}
BNB_INLINE void store_u8(uint8_t* p, I32 x) { store_u8_n(p, x, 4); }
BNB_INLINE void store_i8_n(int8_t* p, I32 x, int64_t n) { store_u8_n(reinterpret_cast<uint8_t*>(p), x, n); }
BNB_INLINE void store_i8(int8_t* p, I32 x) { store_u8_n(reinterpret_cast<uint8_t*>(p), x, 4); }
BNB_INLINE F32 gather(const float* p, I32 index) {
  int32_t i[4];
  store(i, index);
  const float t[4] = {p[i[0]], p[i[1]], p[i[2]], p[i[3]]};
  return load(t);
}
BNB_INLINE I32 gather(const int32_t* p, I32 index) {
  int32_t i[4];
  store(i, index);
  const int32_t t[4] = {p[i[0]], p[i[1]], p[i[2]], p[i[3]]};
  return load_i32(t);
}

}  // namespace
}  // namespace bnb::BNB_ISA
