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
  // Index of the code of 0, which is that of the first threshold above it.
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

template <DynamicMap map>
BNB_INLINE int32_t encode_dynamic(float x) {
  using Lines = DynamicLines<map>;
  const float magnitude = Lines::kSigned ? float_from_bits(float_bits(x) & 0x7fffffffu) : x > 0 ? x : 0;
  float position = magnitude * Lines::slope(0) + Lines::intercept(0);
#pragma GCC unroll 6
  for (int i = 1; i < 7; i++) {
    const float line = magnitude * Lines::slope(i) + Lines::intercept(i);
    position = line < position ? line : position;
  }
  // Rounds to nearest; the mask keeps a NaN's look-up inside the table.
  int32_t j = static_cast<int32_t>(position + 0.5f) & Lines::kPositionMask;
  if (Lines::kSigned) j ^= static_cast<int32_t>(float_bits(x)) >> 31;
  j += Lines::kZero;
  return j + (x > Lines::thresholds()[j]);
}

#if BNB_ISA_LEVEL == 2

constexpr int kDynamicLanes = 16;

// The codes of 16 values, one in each 32-bit lane.
template <DynamicMap map>
BNB_INLINE __m512i encode_dynamic(__m512 x) {
  using Lines = DynamicLines<map>;
  const __m512 magnitude = Lines::kSigned ? _mm512_abs_ps(x) : _mm512_max_ps(x, _mm512_setzero_ps());
  __m512 position = _mm512_fmadd_ps(magnitude, _mm512_set1_ps(Lines::slope(0)), _mm512_set1_ps(Lines::intercept(0)));
#pragma GCC unroll 6
  for (int i = 1; i < 7; i++)
    position = _mm512_min_ps(
        position, _mm512_fmadd_ps(magnitude, _mm512_set1_ps(Lines::slope(i)), _mm512_set1_ps(Lines::intercept(i))));
  __m512i j = _mm512_and_si512(_mm512_cvtps_epi32(position), _mm512_set1_epi32(Lines::kPositionMask));
  if (Lines::kSigned) j = _mm512_xor_si512(j, _mm512_srai_epi32(_mm512_castps_si512(x), 31));
  const __m512 t = _mm512_i32gather_ps(j, Lines::thresholds() + Lines::kZero, 4);
  j = _mm512_add_epi32(j, _mm512_set1_epi32(Lines::kZero));
  return _mm512_mask_add_epi32(j, _mm512_cmp_ps_mask(x, t, _CMP_GT_OQ), j, _mm512_set1_epi32(1));
}

// Values of 16 codes of any 256-entry map.
BNB_INLINE __m512 decode_8bit(const float* map, const uint8_t* codes) {
  const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(c), map, 4);
}

#elif BNB_ISA_LEVEL == 1

constexpr int kDynamicLanes = 8;

template <DynamicMap map>
BNB_INLINE __m256i encode_dynamic(__m256 x) {
  using Lines = DynamicLines<map>;
  const __m256 magnitude =
      Lines::kSigned ? _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x) : _mm256_max_ps(x, _mm256_setzero_ps());
  __m256 position = _mm256_fmadd_ps(magnitude, _mm256_set1_ps(Lines::slope(0)), _mm256_set1_ps(Lines::intercept(0)));
#pragma GCC unroll 6
  for (int i = 1; i < 7; i++)
    position = _mm256_min_ps(
        position, _mm256_fmadd_ps(magnitude, _mm256_set1_ps(Lines::slope(i)), _mm256_set1_ps(Lines::intercept(i))));
  __m256i j = _mm256_and_si256(_mm256_cvtps_epi32(position), _mm256_set1_epi32(Lines::kPositionMask));
  if (Lines::kSigned) j = _mm256_xor_si256(j, _mm256_srai_epi32(_mm256_castps_si256(x), 31));
  const __m256 t = _mm256_i32gather_ps(Lines::thresholds() + Lines::kZero, j, 4);
  j = _mm256_add_epi32(j, _mm256_set1_epi32(Lines::kZero));
  return _mm256_sub_epi32(j, _mm256_castps_si256(_mm256_cmp_ps(x, t, _CMP_GT_OQ)));
}

BNB_INLINE __m256 decode_8bit(const float* map, const uint8_t* codes) {
  const __m128i c = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_i32gather_ps(map, _mm256_cvtepu8_epi32(c), 4);
}

#else
constexpr int kDynamicLanes = 1;
#endif

// codes[i] = code(x[i] * inverse), n of any size.
template <DynamicMap map>
void encode_scaled(const float* x, float inverse, uint8_t* codes, int64_t n) {
  int64_t i = 0;
#if BNB_ISA_LEVEL == 2
  const __m512 scale = _mm512_set1_ps(inverse);
  for (; i + 16 <= n; i += 16) {
    const __m512i q = encode_dynamic<map>(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(q));
  }
#elif BNB_ISA_LEVEL == 1
  const __m256 scale = _mm256_set1_ps(inverse);
  for (; i + 16 <= n; i += 16) {
    const __m256i a = encode_dynamic<map>(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale));
    const __m256i b = encode_dynamic<map>(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), scale));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
#endif
  for (; i < n; i++) codes[i] = static_cast<uint8_t>(encode_dynamic<map>(x[i] * inverse));
}

// Largest magnitude as a bit pattern, which orders like the magnitude and keeps infinity and NaN on top.
BNB_INLINE uint32_t absmax_bits(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t u = float_bits(x[i]) & 0x7fffffffu;
    largest = u > largest ? u : largest;
  }
  return largest;
}

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;
constexpr uint32_t kSmallestNormalBits = 0x00800000u;

// One block: its scale (returned, NaN where an element is not finite) and its codes by the exact rule
// code(x * (1 / scale)), or code(x / scale) for a subnormal scale. scratch holds n floats.
template <DynamicMap map>
float encode_block(const float* x, uint8_t* codes, int64_t n, float* scratch) {
  const uint32_t bits = absmax_bits(x, n);
  if (bits == 0 || bits >= kInfinityBits) {
    for (int64_t i = 0; i < n; i++) codes[i] = static_cast<uint8_t>(DynamicLines<map>::kZero);
    return float_from_bits(bits == 0 ? 0 : kNanBits);
  }
  const float scale = float_from_bits(bits);
  if (bits >= kSmallestNormalBits) {
    encode_scaled<map>(x, 1.0f / scale, codes, n);
  } else {
    for (int64_t i = 0; i < n; i++) scratch[i] = x[i] / scale;
    encode_scaled<map>(scratch, 1.0f, codes, n);
  }
  return scale;
}

// y[i] = map[codes[i]] * scale.
BNB_INLINE void decode_scaled(const float* map, const uint8_t* codes, float scale, float* y, int64_t n) {
  int64_t i = 0;
#if BNB_ISA_LEVEL == 2
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(y + i, _mm512_mul_ps(decode_8bit(map, codes + i), _mm512_set1_ps(scale)));
#elif BNB_ISA_LEVEL == 1
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(decode_8bit(map, codes + i), _mm256_set1_ps(scale)));
#endif
  for (; i < n; i++) y[i] = map[codes[i]] * scale;
}

}  // namespace
}  // namespace bnb::BNB_ISA
