// How numbers become integers, the same on every device: toward zero, saturating, NaN becomes 0.
#pragma once
#include "core/dtype.h"

namespace bnb {

template <class I>
struct Limits;
template <>
struct Limits<int8_t> {
  static constexpr int32_t low = -128, high = 127;
};
template <>
struct Limits<uint8_t> {
  static constexpr int32_t low = 0, high = 255;
};
template <>
struct Limits<int32_t> {
  static constexpr int32_t low = -2147483647 - 1, high = 2147483647;
};

template <class I>
BNB_INLINE I saturate(int32_t v) {
  v = v < Limits<I>::low ? Limits<I>::low : v;
  return static_cast<I>(v > Limits<I>::high ? Limits<I>::high : v);
}
template <class I>
BNB_INLINE I saturate(float v) {
  // 2147483520 is the largest float below 2^31.
  constexpr float high = sizeof(I) == 4 ? 2147483520.0f : static_cast<float>(Limits<I>::high);
  constexpr float low = static_cast<float>(Limits<I>::low);
  const float inside = v > low ? (v < high ? v : high) : low;
  const int32_t whole = static_cast<int32_t>(v == v ? inside : 0.0f);
  return sizeof(I) == 4 && v >= 2147483648.0f ? static_cast<I>(Limits<I>::high) : static_cast<I>(whole);
}

}  // namespace bnb
