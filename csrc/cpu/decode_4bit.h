// Decoding 4-bit weights into registers, for the kernels that multiply by them.
//
// Layout    A run is 8 native vectors of weights. The fast decoder leaves them in the order that costs no
//           shuffle; run_offset() says which weight lands where, and the other operand is permuted instead.
// Numerics  Table values are exact float32. A scale belongs to a granule of 64 weights (32 for blocks of 32),
//           so every block size is served by one lane pattern.
// Needs     Runs start at a multiple of 64 weights. decode_any() takes every other shape.
#pragma once
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/codebooks.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kWidth = F32::width;
constexpr int64_t kRun = 8 * kWidth;

// Weight of a run that lane `lane` of vector `j` holds.
constexpr int run_offset(int j, int lane) {
#if BNB_ISA_LEVEL == 2
  return 8 * lane + j;
#elif BNB_ISA_LEVEL == 1
  const int byte = 4 * (j & 3) + (lane < 4 ? lane : lane + 12);
  return 2 * byte + (j >> 2);
#else
  return j * kWidth + lane;
#endif
}

// Where weight `offset` of a run stands when the 8 vectors are stored one after another.
struct RunPositions {
  int16_t of[kRun] = {};
  constexpr RunPositions() {
    for (int j = 0; j < 8; j++)
      for (int lane = 0; lane < kWidth; lane++) of[run_offset(j, lane)] = static_cast<int16_t>(j * kWidth + lane);
  }
};
constexpr RunPositions kRunPositions;

// Decodes half a run at a time: vectors 4 * h to 4 * h + 3.
struct Decoder {
#if BNB_ISA_LEVEL == 2
  // 32-bit lane i holds weights 8 i to 8 i + 7. A permutation by lane reads only the low 4 bits of its
  // index, so one shift brings each nibble into place and nothing has to be masked.
  using Bytes = __m512i;
  __m512 table;

  BNB_INLINE explicit Decoder(QuantType type) : table(_mm512_loadu_ps(kValues4bit[static_cast<int>(type)].v)) {}
  BNB_INLINE Bytes load_run(const uint8_t* p) const { return _mm512_loadu_si512(p); }
  BNB_INLINE Bytes load_half_run(const uint8_t* p) const {
    return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <int h>
  BNB_INLINE void part(Bytes v, F32 (&w)[4]) const {
    w[0].v = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 16 * h + 4), table);
    w[1].v = _mm512_permutexvar_ps(h ? _mm512_srli_epi32(v, 16) : v, table);
    w[2].v = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 16 * h + 12), table);
    w[3].v = _mm512_permutexvar_ps(_mm512_srli_epi32(v, 16 * h + 8), table);
  }
#elif BNB_ISA_LEVEL == 1
  // Four byte planes of the table, one per byte of a float: shuffles look 32 codes up in each, and
  // interleaving the four results gives exact floats.
  using Bytes = __m256i;
  __m256i plane[4];

  BNB_INLINE explicit Decoder(QuantType type) {
    alignas(16) uint8_t bytes[4][16];
    const float* table = kValues4bit[static_cast<int>(type)].v;
    for (int code = 0; code < 16; code++)
      for (int b = 0; b < 4; b++) bytes[b][code] = static_cast<uint8_t>(float_bits(table[code]) >> (8 * b));
    for (int b = 0; b < 4; b++)
      plane[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes[b])));
  }
  BNB_INLINE Bytes load_run(const uint8_t* p) const { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  template <int h>
  BNB_INLINE void part(Bytes v, F32 (&w)[4]) const {
    const __m256i codes = _mm256_and_si256(h ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    const __m256i b0 = _mm256_shuffle_epi8(plane[0], codes), b1 = _mm256_shuffle_epi8(plane[1], codes);
    const __m256i b2 = _mm256_shuffle_epi8(plane[2], codes), b3 = _mm256_shuffle_epi8(plane[3], codes);
    const __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
    const __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
    w[0].v = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low0, high0));
    w[1].v = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low0, high0));
    w[2].v = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low1, high1));
    w[3].v = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low1, high1));
  }
#else
  using Bytes = const uint8_t*;
  const float* table;

  BNB_INLINE explicit Decoder(QuantType type) : table(kValues4bit[static_cast<int>(type)].v) {}
  BNB_INLINE Bytes load_run(const uint8_t* p) const { return p; }
  template <int h>
  BNB_INLINE void part(Bytes v, F32 (&w)[4]) const {
    float values[4 * kWidth];
    for (int i = 0; i < 2 * kWidth; i++) {
      const uint8_t byte = v[2 * kWidth * h + i];
      values[2 * i] = table[byte >> 4];
      values[2 * i + 1] = table[byte & 15];
    }
    for (int j = 0; j < 4; j++) w[j] = load(values + j * kWidth);
  }
#endif
};

// A run of 128 weights may be the last 64 of a row: its upper lanes then decode to anything, and take scale 0.
constexpr bool kHasHalfRun = kRun == 128;

// Scales are handed out per granule of weights.
BNB_INLINE int granule_shift(int64_t blocksize) { return kRun >= 64 && blocksize >= 64 ? 6 : 5; }

// The scales of a run (or of its first 64 weights) in the lanes of the weights that they belong to.
BNB_INLINE F32 run_scale(const float* s, int shift, bool half) {
#if BNB_ISA_LEVEL == 2
  if (shift == 6) {
    const __m512 first = _mm512_maskz_broadcastss_ps(half ? 0x00ff : 0xffff, _mm_load_ss(s));
    return {half ? first : _mm512_mask_broadcastss_ps(first, 0xff00, _mm_load_ss(s + 1))};
  }
  const __m128 four = _mm_maskz_loadu_ps(half ? 0x3 : 0xf, s);
  const __m512i lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return {_mm512_permutexvar_ps(lanes, _mm512_castps128_ps512(four))};
#elif BNB_ISA_LEVEL == 1
  (void)half;
  if (shift == 6) return set1(s[0]);
  return {_mm256_set_m128(_mm_set1_ps(s[1]), _mm_set1_ps(s[0]))};
#else
  (void)half, (void)shift;
  return set1(s[0]);
#endif
}

BNB_INLINE int log2_of(int64_t power) { return __builtin_ctzll(static_cast<unsigned long long>(power)); }

// The scales of `count` granules from weight `first` on, which a granule divides: the stored ones where
// they have that form, else expanded into `buffer`.
BNB_INLINE const float* granule_scales(const Weight4Bit& w, int64_t first, int64_t count, int shift, float* buffer) {
  const int block_shift = log2_of(w.blocksize);
  const auto block_of = [&](int64_t i) { return (first + (i << shift)) >> block_shift; };
  if (!w.scales.nested_absmax) {
    const float* absmax = static_cast<const float*>(w.scales.absmax);
    if (block_shift == shift) return absmax + (first >> shift);
    for (int64_t i = 0; i < count; i++) buffer[i] = absmax[block_of(i)];
    return buffer;
  }
  const uint8_t* codes = static_cast<const uint8_t*>(w.scales.absmax);
  const int nested_shift = log2_of(w.scales.nested_blocksize);
  const float* code = w.scales.nested_code;
  const float offset = w.scales.offset[0];
  // Look-ups first, then arithmetic on whole vectors, for as many granules as share a scale of scales.
  for (int64_t i = 0; i < count;) {
    const int64_t nested = block_of(i) >> nested_shift;
    const int64_t end = ((((nested + 1) << nested_shift) << block_shift) - first) >> shift;
    const int64_t stop = end < count ? end : count;
    const float scale = w.scales.nested_absmax[nested];
    if (block_shift == shift) {
      const uint8_t* from = codes + (first >> shift) + i;
      float* to = buffer + i;
      int64_t left = stop - i;
      for (; left >= 16; left -= 16, from += 16, to += 16)
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) to[j] = code[from[j]];
      for (; left > 0; left--) *to++ = code[*from++];
    } else {
      for (int64_t j = i; j < stop; j++) buffer[j] = code[codes[block_of(j)]];
    }
    for (; i < stop; i++) buffer[i] = buffer[i] * scale + offset;
  }
  return buffer;
}

// Asks for the scales, or for all, of `count` weights that a later call will decode; addresses past the end are
// harmless.
constexpr int64_t kRowsAhead = 8;
BNB_INLINE void prefetch_scales(const Weight4Bit& w, int64_t first, int64_t count) {
  const int64_t size = w.scales.nested_absmax ? 1 : sizeof(float);
  const int shift = log2_of(w.blocksize);
  const char* p = static_cast<const char*>(w.scales.absmax) + (first >> shift) * size;
  for (int64_t i = 0; i <= (count >> shift) * size; i += 64) __builtin_prefetch(p + i);
}
BNB_INLINE void prefetch_weights(const Weight4Bit& w, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i += 128) __builtin_prefetch(w.packed + (first + i) / 2);
  prefetch_scales(w, first, count);
}

// out[0, count) = the dequantized weights from `first` on, in their own order, for any first and count.
inline void decode_any(const Weight4Bit& w, int64_t first, int64_t count, float* out) {
  const float* table = kValues4bit[static_cast<int>(w.type)].v;
  const int block_shift = log2_of(w.blocksize);
  const int64_t end = first + count;
  for (int64_t i = first; i < end;) {
    const int64_t block = i >> block_shift;
    const int64_t block_end = (block + 1) << block_shift;
    const int64_t stop = block_end < end ? block_end : end;
    const float scale = scale_of(w.scales, block);
    if (i & 1) *out++ = table[w.packed[i++ >> 1] & 15] * scale;
    for (; i + 1 < stop; i += 2) {
      const uint8_t byte = w.packed[i >> 1];
      *out++ = table[byte >> 4] * scale;
      *out++ = table[byte & 15] * scale;
    }
    if (i < stop) *out++ = table[w.packed[i++ >> 1] >> 4] * scale;
  }
}

}  // namespace
}  // namespace bnb::BNB_ISA
