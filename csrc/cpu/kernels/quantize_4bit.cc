// Blockwise 4-bit quantization and its inverse.
//
// Layout    Element 2k is the high nibble of byte k. Blocks are powers of two from 32 on, so a block starts on a byte
//           and both directions work on runs of 32 elements = 16 bytes.
// Work      Items are blocks. Quantizing reads a block twice, the second time from L1.
// Numerics  Bit exact: x = a * (1 / absmax) with IEEE operations (a / absmax for a subnormal scale), then strict
//           comparisons with the thresholds. Every search below is a different way to count the same thresholds.
// Needs     AVX-512 looks up one of 32 bins that holds at most one threshold; AVX2 halves four times.
#include "kernels/quantize_4bit.h"

#include "cpu/block_io.h"
#include "cpu/dynamic_map.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "kernels/codebooks.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kRun = 32;
constexpr int64_t kLargestBlock = 4096;

// Packs the codes of x[i] * inverse for runs of 32.
struct Encoder {
#if BNB_ISA_LEVEL == 2
  __m512 threshold[2];
  __m512i below[2], above[2];

  explicit Encoder(QuantType type) {
    const Bins4bit& b = kBins4bit[static_cast<int>(type)];
    for (int h = 0; h < 2; h++) {
      threshold[h] = _mm512_load_ps(b.threshold + 16 * h);
      below[h] = _mm512_load_si512(b.below + 16 * h);
      above[h] = _mm512_load_si512(b.above + 16 * h);
    }
  }

  // 16 codes, packed two a byte.
  BNB_INLINE __m128i pack(__m512 x) const {
    // Rounding this sum down leaves floor(x * kBinScale) + kBinOffset in the low bits, which is all the look-up reads.
    const __m512 magic = _mm512_set1_ps(12582912.0f + kBinOffset);
    const __m512i bin = _mm512_castps_si512(
        _mm512_fmadd_round_ps(x, _mm512_set1_ps(kBinScale), magic, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    const __m512 t = _mm512_permutex2var_ps(threshold[0], bin, threshold[1]);
    const __m512i low = _mm512_permutex2var_epi32(below[0], bin, below[1]);
    const __m512i high = _mm512_permutex2var_epi32(above[0], bin, above[1]);
    const __m512i code = _mm512_mask_mov_epi32(low, _mm512_cmp_ps_mask(x, t, _CMP_GT_OQ), high);
    return _mm512_cvtepi64_epi8(_mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32)));
  }

  BNB_INLINE void run(const float* x, float inverse, uint8_t* packed) const {
    const __m512 s = _mm512_set1_ps(inverse);
    const __m128i a = pack(_mm512_mul_ps(_mm512_loadu_ps(x), s)), b = pack(_mm512_mul_ps(_mm512_loadu_ps(x + 16), s));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm_unpacklo_epi64(a, b));
  }
#elif BNB_ISA_LEVEL == 1
  __m256 middle, quarter[2], eighth, last;
  __m256i code;

  explicit Encoder(QuantType type) {
    const Ranks4bit& r = kRanks4bit[static_cast<int>(type)];
    const float* t = r.threshold;
    middle = _mm256_set1_ps(t[7]);
    quarter[0] = _mm256_set1_ps(t[3]);
    quarter[1] = _mm256_set1_ps(t[11]);
    eighth = _mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13]);
    last = _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]);
    code = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(r.code)));
  }

  // The number of thresholds below x: one binary digit per comparison, whose mask is 0 or -1.
  BNB_INLINE __m256i rank(__m256 x) const {
    const __m256 m1 = _mm256_cmp_ps(x, middle, _CMP_GT_OQ);
    const __m256 m2 = _mm256_cmp_ps(x, _mm256_blendv_ps(quarter[0], quarter[1], m1), _CMP_GT_OQ);
    const __m256i top = _mm256_castps_si256(m1);
    const __m256i two = _mm256_add_epi32(_mm256_add_epi32(top, top), _mm256_castps_si256(m2));
    const __m256i at2 = _mm256_sub_epi32(_mm256_setzero_si256(), two);
    const __m256 m3 = _mm256_cmp_ps(x, _mm256_permutevar8x32_ps(eighth, at2), _CMP_GT_OQ);
    const __m256i at3 = _mm256_sub_epi32(_mm256_add_epi32(at2, at2), _mm256_castps_si256(m3));
    const __m256 m4 = _mm256_cmp_ps(x, _mm256_permutevar8x32_ps(last, at3), _CMP_GT_OQ);
    return _mm256_sub_epi32(_mm256_add_epi32(at3, at3), _mm256_castps_si256(m4));
  }

  BNB_INLINE void run(const float* x, float inverse, uint8_t* packed) const {
    const __m256 s = _mm256_set1_ps(inverse);
    __m256i q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) q[i] = rank(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), s));
    // Bytes in groups of four: q0 low, q1 low, q2 low, q3 low, then the high halves.
    const __m256i ranks = _mm256_packus_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i codes = _mm256_shuffle_epi8(code, ranks);
    const __m256i ordered = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m256i pairs = _mm256_maddubs_epi16(ordered, _mm256_set1_epi16(0x0110));
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm256_castsi256_si128(bytes));
  }
#else
  const Ranks4bit& ranks;

  explicit Encoder(QuantType type) : ranks(kRanks4bit[static_cast<int>(type)]) {}

  BNB_INLINE void run(const float* x, float inverse, uint8_t* packed) const {
    const F32 s = set1(inverse);
    int32_t rank[kRun];
    for (int i = 0; i < kRun; i += F32::width) {
      const F32 v = load(x + i) * s;
      I32 count = zero_i32();
      for (int j = 0; j < 15; j++) count = select(gt(v, set1(ranks.threshold[j])), count + set1_i32(1), count);
      store(rank + i, count);
    }
    for (int i = 0; i < kRun / 2; i++)
      packed[i] = static_cast<uint8_t>(ranks.code[rank[2 * i]] << 4 | ranks.code[rank[2 * i + 1]]);
  }
#endif
};

// One block whose n elements are padded with zeros to a whole number of runs. Returns the scale.
BNB_INLINE float encode_4bit_block(const Encoder& encoder, const float* x, int64_t n, uint8_t zero_code,
                                   uint8_t* packed, float* scratch) {
  const uint32_t bits = absmax_bits(x, n);
  if (bits == 0 || bits >= kInfinityBits) {
    for (int64_t i = 0; i < n / 2; i++) packed[i] = static_cast<uint8_t>(zero_code << 4 | zero_code);
    return float_from_bits(bits == 0 ? 0 : kNanBits);
  }
  const float scale = float_from_bits(bits);
  float inverse = 1.0f / scale;
  if (bits < kSmallestNormalBits) {
    divide(x, scale, scratch, n);
    x = scratch;
    inverse = 1;
  }
  for (int64_t i = 0; i < n; i += kRun) encoder.run(x + i, inverse, packed + i / 2);
  return scale;
}

template <class T>
void quantize_blocks(const Quantize4BitArgs& a, int64_t begin, int64_t end) {
  alignas(64) float widened[kLargestBlock], scratch[kLargestBlock];
  const Encoder encoder(a.type);
  const uint8_t zero_code = kRanks4bit[static_cast<int>(a.type)].zero;
  for (int64_t b = begin; b < end; b++) {
    const int64_t first = b * a.blocksize;
    const T* x = static_cast<const T*>(a.x) + first;
    const int64_t n = a.n - first < a.blocksize ? a.n - first : a.blocksize;
    prefetch_ahead(x, n);
    if (n == a.blocksize) {
      a.absmax[b] = encode_4bit_block(encoder, widen(x, n, widened), n, zero_code, a.packed + first / 2, scratch);
      continue;
    }
    // The partial last block: zeros up to a whole run leave the scale alone and encode as the code of 0.
    uint8_t packed[kLargestBlock / 2];
    for (int64_t i = 0; i < n; i++) widened[i] = to_float(x[i]);
    int64_t padded = n;
    while (padded % kRun) widened[padded++] = 0;
    a.absmax[b] = encode_4bit_block(encoder, widened, padded, zero_code, packed, scratch);
    __builtin_memcpy(a.packed + first / 2, packed, static_cast<size_t>((n + 1) / 2));
  }
}

// Unpacks runs of 32 codes with one scale. Where a block's 16 products fit the look-up, they are made once per block.
template <class T>
struct Decoder {
  alignas(64) float table[16];
  float scale = 0;

  // Elements [0, n) of a run, n <= 32.
  BNB_INLINE void part(const uint8_t* packed, T* y, int64_t n) const {
    for (int64_t i = 0; i < n; i++)
      y[i] = from_float<T>(table[i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4] * scale);
  }

  // runs<streaming>(packed, y, n): n is a multiple of 32; streaming stores need y to be aligned to 64 bytes.
#if BNB_ISA_LEVEL == 2
  __m512i values;  // 16 float32, or 16 halves twice

  explicit Decoder(QuantType type) { __builtin_memcpy(table, codebook_4bit(type), sizeof(table)); }

  BNB_INLINE void set_scale(float s) {
    scale = s;
    const F32 products = load(table) * set1(s);
    if constexpr (sizeof(T) == 4) {
      values = _mm512_castps_si512(products.v);
    } else {
      alignas(32) T halves[16];
      store(halves, products);
      values = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)));
    }
  }

  template <bool streaming>
  BNB_INLINE void runs(const uint8_t* packed, T* y, int64_t n) const {
    if constexpr (sizeof(T) == 4) {
      for (int64_t i = 0; i < n; i += 16) {
        // Each byte in 64 bits: its high nibble to the low half, its low nibble to the high half. The look-up reads
        // only the low four bits of a lane.
        const __m512i b = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + i / 2)));
        const __m512i at = _mm512_or_si512(_mm512_srli_epi64(b, 4), _mm512_slli_epi64(b, 32));
        store_vector<streaming>(y + i, _mm512_permutexvar_epi32(at, values));
      }
    } else {
      for (int64_t i = 0; i < n; i += 32) {
        // The look-up reads five bits, the fifth of which belongs to the other nibble.
        const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2)));
        const __m512i at = _mm512_or_si512(_mm512_srli_epi32(b, 4), _mm512_slli_epi32(b, 16));
        store_vector<streaming>(y + i, _mm512_permutexvar_epi16(at, values));
      }
    }
  }
#elif BNB_ISA_LEVEL == 1
  // One 16-byte table per byte of a value, in both halves; interleaving what they give puts the values together.
  // float32 looks the plain table up and multiplies, 16-bit types look up the block's rounded products.
  __m256i plane[sizeof(T)];

  explicit Decoder(QuantType type) {
    __builtin_memcpy(table, codebook_4bit(type), sizeof(table));
    if constexpr (sizeof(T) == 4) {
      alignas(16) uint8_t bytes[4][16];
      for (int code = 0; code < 16; code++)
        for (int p = 0; p < 4; p++) bytes[p][code] = static_cast<uint8_t>(float_bits(table[code]) >> (8 * p));
      for (int p = 0; p < 4; p++)
        plane[p] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes[p])));
    }
  }

  BNB_INLINE void set_scale(float s) {
    scale = s;
    if constexpr (sizeof(T) == 2) {
      alignas(32) T halves[16];
      store(halves, load(table) * set1(s));
      store(halves + 8, load(table + 8) * set1(s));
      const __m256i v = _mm256_load_si256(reinterpret_cast<const __m256i*>(halves));
      const __m256i low = _mm256_and_si256(v, _mm256_set1_epi16(255)), high = _mm256_srli_epi16(v, 8);
      // low 0-7, high 0-7, low 8-15, high 8-15 in quarters of 8 bytes
      const __m256i both = _mm256_packus_epi16(low, high);
      plane[0] = _mm256_permute4x64_epi64(both, 0x88);
      plane[1] = _mm256_permute4x64_epi64(both, 0xdd);
    }
  }

  template <bool streaming>
  BNB_INLINE void runs(const uint8_t* packed, T* y, int64_t n) const {
    // The bytes that each half of the vectors below decodes, in 16 bits each.
    const __m256i order = sizeof(T) == 4 ? _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 2,
                                                            -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1)
                                         : _mm256_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1, 4,
                                                            -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15, -1);
    const __m256 s = _mm256_set1_ps(scale);
    for (int64_t i = 0; i < n; i += 32) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed + i / 2));
      const __m256i b = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
      const __m256i low_nibbles = _mm256_and_si256(b, _mm256_set1_epi16(15));
      const __m256i at = _mm256_or_si256(_mm256_srli_epi16(b, 4), _mm256_slli_epi16(low_nibbles, 8));
      const __m256i b0 = _mm256_shuffle_epi8(plane[0], at), b1 = _mm256_shuffle_epi8(plane[1], at);
      const __m256i low0 = _mm256_unpacklo_epi8(b0, b1), low1 = _mm256_unpackhi_epi8(b0, b1);
      if constexpr (sizeof(T) == 2) {
        store_vector<streaming>(y + i, low0);
        store_vector<streaming>(y + i + 16, low1);
      } else {
        const __m256i b2 = _mm256_shuffle_epi8(plane[2], at), b3 = _mm256_shuffle_epi8(plane[3], at);
        const __m256i high0 = _mm256_unpacklo_epi8(b2, b3), high1 = _mm256_unpackhi_epi8(b2, b3);
        const __m256i v[4] = {_mm256_unpacklo_epi16(low0, high0), _mm256_unpackhi_epi16(low0, high0),
                              _mm256_unpacklo_epi16(low1, high1), _mm256_unpackhi_epi16(low1, high1)};
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
          const __m256 product = _mm256_mul_ps(_mm256_castsi256_ps(v[k]), s);
          store_vector<streaming>(y + i + 8 * k, _mm256_castps_si256(product));
        }
      }
    }
  }
#else
  T values[16];

  explicit Decoder(QuantType type) { __builtin_memcpy(table, codebook_4bit(type), sizeof(table)); }

  BNB_INLINE void set_scale(float s) {
    scale = s;
    for (int i = 0; i < 16; i += F32::width) store(values + i, load(table + i) * set1(s));
  }

  template <bool streaming>
  BNB_INLINE void runs(const uint8_t* packed, T* y, int64_t n) const {
    for (int64_t i = 0; i < n / 2; i++) {
      y[2 * i] = values[packed[i] >> 4];
      y[2 * i + 1] = values[packed[i] & 15];
    }
  }
#endif
};

template <class T, bool streaming>
void dequantize_blocks(const Dequantize4BitArgs& a, int64_t begin, int64_t end) {
  Decoder<T> decoder(a.type);
  for (int64_t b = begin; b < end; b++) {
    const int64_t first = b * a.blocksize;
    const int64_t n = a.n - first < a.blocksize ? a.n - first : a.blocksize;
    T* y = static_cast<T*>(a.y) + first;
    const uint8_t* packed = a.packed + first / 2;
    decoder.set_scale(scale_of(a.scales, b));
    const int64_t whole = n / kRun * kRun;
    decoder.template runs<streaming>(packed, y, whole);
    if (whole < n) decoder.part(packed + whole / 2, y + whole, n - whole);
  }
  if (streaming) finish_streaming();
}

}  // namespace

void quantize_4bit(const Quantize4BitArgs& a) {
  const int64_t blocks = (a.n + a.blocksize - 1) / a.blocksize;
  visit_float(a.dtype, [&](auto t) {
    parallel_for(blocks, kBlockGrain / a.blocksize,
                 [&](int64_t begin, int64_t end) { quantize_blocks<decltype(t)>(a, begin, end); });
  });
}

void dequantize_4bit(const Dequantize4BitArgs& a) {
  const int64_t blocks = (a.n + a.blocksize - 1) / a.blocksize;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const bool streaming = streams_well(a.y, a.n * static_cast<int64_t>(sizeof(T)));
    parallel_for(blocks, kBlockGrain / a.blocksize, [&](int64_t begin, int64_t end) {
      if (streaming) {
        dequantize_blocks<T, true>(a, begin, end);
      } else {
        dequantize_blocks<T, false>(a, begin, end);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
