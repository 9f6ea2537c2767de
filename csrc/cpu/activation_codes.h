// Activations as integers, and 4-bit weights as bytes: what the products of rounded activations have in common.
//
// Numerics  The codes of a granule of x are round(x / s), s = max|x| / `most`. One that is not finite has codes of zero
//           and NaN for a scale. Bytes of w are round(127 table), or 128 more, which add_byte_products wants unsigned.
#pragma once
#include "cpu/simd.h"
#include "kernels/codebooks.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

struct Granule {
  float scale, inverse;
  bool finite;

  BNB_INLINE I32 codes(F32 x) const { return finite ? to_i32(x * set1(inverse)) : zero_i32(); }
};

// `largest`: bits of magnitudes, the largest of the granule among them.
BNB_INLINE Granule granule_of(I32 largest, float most) {
  const auto top = static_cast<uint32_t>(reduce_max(largest));
  const float absmax = float_from_bits(top);
  if (top >= 0x7f800000u) return {__builtin_nanf(""), 0.0f, false};
  // Where the quotient overflows the products are next to nothing.
  return {absmax * (1.0f / most), absmax > most * 0x1p-127f ? most / absmax : 0.0f, true};
}

#if BNB_ISA_LEVEL >= 1
constexpr float kByteCodes = 127.0f;

// The 16 bytes, in each 128 bits, with `more` added.
inline I32 byte_table(QuantType type, int more = 128) {
  alignas(16) uint8_t bytes[16];
  const float* table = kValues4bit[static_cast<int>(type)].v;
  for (int code = 0; code < 16; code++)
    bytes[code] = static_cast<uint8_t>(more + __builtin_lrintf(kByteCodes * table[code]));
  const __m128i lane = _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
#if BNB_ISA_LEVEL == 2
  return {_mm512_broadcast_i32x4(lane)};
#else
  return {_mm256_broadcastsi128_si256(lane)};
#endif
}

// The bytes of the codes in the low nibbles.
BNB_INLINE I32 look_up_bytes(I32 table, I32 codes) {
  const I32 low = codes & set1_i32(0x0f0f0f0f);
#if BNB_ISA_LEVEL == 2
  return {_mm512_shuffle_epi8(table.v, low.v)};
#else
  return {_mm256_shuffle_epi8(table.v, low.v)};
#endif
}

// 16 integers of the range of a byte, from as many vectors as have them.
BNB_INLINE __m128i bytes_of(const I32* q) {
#if BNB_ISA_LEVEL == 2
  return _mm512_cvtepi32_epi8(q->v);
#else
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(q[0].v, q[1].v), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
#endif
}
#endif

}  // namespace
}  // namespace bnb::BNB_ISA
