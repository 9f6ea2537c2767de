// The two functions of the Box-Muller transform, from IEEE operations in a fixed order without fused multiply-add: the
// same bits on every device.
#pragma once
#include "core/float16.h"

namespace bnb {

constexpr float kUnit = 5.9604644775390625e-8f;  // 2^-24

// Natural logarithm of a normal positive number: the mantissa m in [sqrt(1/2), sqrt(2)) by the series of
// 2 artanh((m - 1) / (m + 1)).
BNB_INLINE float log_of(float u) {
  const int32_t bits = static_cast<int32_t>(float_bits(u));
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float m = float_from_bits(static_cast<uint32_t>(bits - exponent * (1 << 23)));
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  const float series = 1.0f + z * (0.333333333f + z * (0.2f + z * (0.142857143f + z * 0.111111111f)));
  return static_cast<float>(exponent) * 0.693147181f + 2.0f * s * series;
}

// -2 log of a uniform number in (0, 1] made of the upper 24 bits of a word: the square of the radius.
BNB_INLINE float squared_radius(uint32_t word) {
  return -2.0f * log_of(static_cast<float>(static_cast<int32_t>(word >> 8) + 1) * kUnit);
}

// cosine and sine of a turn of k * 2^-24, reduced to an eighth of a turn in integers, hence exactly.
BNB_INLINE void turn(uint32_t k, float& cosine, float& sine) {
  const int32_t quarter = static_cast<int32_t>((k + (1u << 21)) >> 22);
  const float x = static_cast<float>(static_cast<int32_t>(k) - quarter * (1 << 22)) * 3.74507028e-7f;  // 2 pi / 2^24
  const float z = x * x;
  const float s = x * (1.0f + z * (-0.166666667f + z * (8.33333333e-3f + z * (-1.98412698e-4f + z * 2.75573192e-6f))));
  const float c = 1.0f + z * (-0.5f + z * (0.0416666667f + z * (-1.38888889e-3f + z * 2.48015873e-5f)));
  const float a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
  cosine = (quarter + 1) & 2 ? -a : a;
  sine = quarter & 2 ? -b : b;
}

}  // namespace bnb
