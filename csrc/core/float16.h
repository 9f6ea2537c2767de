// Storage types for the two 16-bit floats and their exact conversions (round to nearest even), usable on
// host and device. They hold bits only; arithmetic happens in float32.
#pragma once
#include <cstdint>

#if defined(_MSC_VER)
#define BNB_HOST_INLINE __forceinline
#else
#define BNB_HOST_INLINE __attribute__((always_inline)) inline
#endif
#if defined(__CUDACC__)
#define BNB_INLINE __host__ __device__ __forceinline__
#else
#define BNB_INLINE BNB_HOST_INLINE
#endif

namespace bnb {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

BNB_INLINE uint32_t float_bits(float x) {
  union {
    float f;
    uint32_t u;
  } c = {x};
  return c.u;
}
BNB_INLINE float float_from_bits(uint32_t u) {
  union {
    uint32_t u;
    float f;
  } c = {u};
  return c.f;
}

BNB_INLINE float to_float(float x) { return x; }
BNB_INLINE float to_float(bf16 x) { return float_from_bits(static_cast<uint32_t>(x.bits) << 16); }
BNB_INLINE float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + 0x38000000u));
  // Subnormal: magnitude * 2^-24 is exact in float32.
  return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));
}

template <class T>
BNB_INLINE T from_float(float x);

template <>
BNB_INLINE float from_float<float>(float x) {
  return x;
}
template <>
BNB_INLINE bf16 from_float<bf16>(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
template <>
BNB_INLINE f16 from_float<f16>(float x) {
  const uint32_t u = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude >= 0x38800000u) {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
  }
  // Subnormal result: adding 0.5 leaves the rounded count of 2^-24 steps in the low bits.
  const float shifted = float_from_bits(magnitude) + 0.5f;
  return {static_cast<uint16_t>(sign | (float_bits(shifted) & 0x7ffu))};
}

}  // namespace bnb
