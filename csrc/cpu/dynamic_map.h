// The 8-bit dynamic maps on vectors: exact code of a normalized value, and value of a code. Shared by the blockwise
// quantizer and the 8-bit optimizers.
//
// A map is seven decades of evenly spaced codes, so the position of |x| among the thresholds is concave and piecewise
// linear: the minimum of seven lines is within 0.4 of it, and one exact comparison with the threshold there decides.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/simd.h"
#include "kernels/codebooks.h"

namespace bnb::BNB_ISA {
namespace {

// signed_keep_sign is for optimizer states: a negative value never becomes the code of 0.
enum class DynamicMap { signed_map, unsigned_map, signed_keep_sign };

template <DynamicMap map>
struct DynamicLines {
  static constexpr bool kSigned = map != DynamicMap::unsigned_map;
  // The code of 0, which is also the index of the first threshold above it.
  static constexpr int kZero = kSigned ? 127 : 0;
  static constexpr int kPositionMask = kSigned ? 127 : 255;

  // Threshold t[i]; t[-1] is -inf.
  static BNB_INLINE const float* thresholds() {
    if constexpr (map == DynamicMap::signed_map) return kSignedThresholds.t;
    if constexpr (map == DynamicMap::signed_keep_sign) return kSignedKeepSignThresholds.t;
    return kUnsignedThresholds.t;
  }
  static BNB_INLINE const float* values() { return kSigned ? kDynamicSigned : kDynamicUnsigned; }

  // Decade i has n = 2^i (signed) or 2^(i+1) cells from code first = 2^i or 2^(i+1) - 1 on, counted from zero.
  static constexpr double cells(int i) { return kSigned ? 1 << i : 2 << i; }
  static constexpr double first(int i) { return kSigned ? 1 << i : (2 << i) - 1; }
  static constexpr double kPower[7] = {1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1e0};
  static constexpr float slope(int i) { return static_cast<float>(cells(i) * kPower[i] / 0.9); }
  static constexpr float intercept(int i) { return static_cast<float>(first(i) - 1 - cells(i) / 9); }
};

// The codes of normalized values, one in each lane.
template <DynamicMap map>
BNB_INLINE I32 encode_dynamic(F32 x) {
  using Lines = DynamicLines<map>;
  const F32 magnitude = Lines::kSigned ? abs(x) : max(x, zero());
  F32 position = fma(magnitude, set1(Lines::slope(0)), set1(Lines::intercept(0)));
#pragma GCC unroll 6
  for (int i = 1; i < 7; i++)
    position = min(position, fma(magnitude, set1(Lines::slope(i)), set1(Lines::intercept(i))));
  // The mask keeps the look-up of a NaN inside the table.
  I32 j = to_i32(position) & set1_i32(Lines::kPositionMask);
  if (Lines::kSigned) j = j ^ sar(bitcast(x), 31);
  const F32 t = gather(Lines::thresholds() + Lines::kZero, j);
  return select(gt(x, t), j + set1_i32(Lines::kZero + 1), j + set1_i32(Lines::kZero));
}

// codes[i] = code(x[i] * inverse), n of any size.
template <DynamicMap map>
BNB_INLINE void encode_scaled(const float* x, float inverse, uint8_t* codes, int64_t n) {
  const F32 scale = set1(inverse);
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store_u8(codes + i, encode_dynamic<map>(load(x + i) * scale));
  if (i < n) store_u8_n(codes + i, encode_dynamic<map>(load_n(x + i, n - i) * scale), n - i);
}

// Largest magnitude as a bit pattern, which orders like the magnitude and keeps infinity and NaN on top.
BNB_INLINE uint32_t absmax_bits(const float* x, int64_t n) {
  const I32 magnitude = set1_i32(0x7fffffff);
  I32 a = zero_i32(), b = zero_i32();
  int64_t i = 0;
  for (; i + 2 * F32::width <= n; i += 2 * F32::width) {
    a = max(a, bitcast(load(x + i)) & magnitude);
    b = max(b, bitcast(load(x + i + F32::width)) & magnitude);
  }
  for (; i < n; i += F32::width)
    a = max(a, bitcast(load_n(x + i, n - i < F32::width ? n - i : F32::width)) & magnitude);
  return static_cast<uint32_t>(reduce_max(max(a, b)));
}

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;
constexpr uint32_t kSmallestNormalBits = 0x00800000u;

// quotient[i] = x[i] / scale: for a subnormal scale, whose reciprocal could overflow.
BNB_INLINE void divide(const float* x, float scale, float* quotient, int64_t n) {
  for (int64_t i = 0; i < n; i++) quotient[i] = x[i] / scale;
}

// One block: its scale (returned, NaN where an element is not finite) and its codes by the exact rule
// code(x * (1 / scale)), or code(x / scale) for a subnormal scale. scratch holds n floats.
template <DynamicMap map>
BNB_INLINE float encode_block(const float* x, uint8_t* codes, int64_t n, float* scratch) {
  const uint32_t bits = absmax_bits(x, n);
  if (bits == 0 || bits >= kInfinityBits) {
    for (int64_t i = 0; i < n; i++) codes[i] = static_cast<uint8_t>(DynamicLines<map>::kZero);
    return float_from_bits(bits == 0 ? 0 : kNanBits);
  }
  const float scale = float_from_bits(bits);
  if (bits >= kSmallestNormalBits) {
    encode_scaled<map>(x, 1.0f / scale, codes, n);
  } else {
    divide(x, scale, scratch, n);
    encode_scaled<map>(scratch, 1.0f, codes, n);
  }
  return scale;
}

// y[i] = map[codes[i]] * scale, for any map of 256 values.
BNB_INLINE void decode_scaled(const float* map, const uint8_t* codes, float scale, float* y, int64_t n) {
  const F32 s = set1(scale);
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(y + i, gather(map, load_u8(codes + i)) * s);
  if (i < n) store_n(y + i, gather(map, load_u8_n(codes + i, n - i)) * s, n - i);
}

}  // namespace
}  // namespace bnb::BNB_ISA
