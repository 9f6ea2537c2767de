// y = x @ dequantize(w)^T + bias + residual for a few rows of x that may be rounded to 16 bits: products of int16, two
// to a lane. AVX2 decodes an int16 from two byte planes, where a float takes four, and multiplies 16 of them at once.
//
// Layout    A run is 64 weights: 32 bytes, of which the high nibbles make vectors 0 and 1, the low ones 2 and 3. x is
//           quantized into that order.
// Work      as cpu/linear_4bit_rows.h
// Numerics  The codes of w are round(8191 table), those of x up to 16383 as cpu/activation_codes.h says, a granule
//           being 64 of K, or 32 for blocks of 32. A lane sums 8 products, below 1.08e9, exactly; sums join float32
//           ones with both scales.
// Needs     AVX2, plan `small`.
#include "cpu/activation_codes.h"
#include "cpu/linear_4bit_rows.h"

namespace bnb::BNB_ISA {

bool linear_4bit_int16(const Linear4BitArgs& a);

#if BNB_ISA_LEVEL == 1
namespace {

constexpr float kWeightCodes = 8191.0f, kCodes = 16383.0f;

// Where weight `p` of a run stands.
constexpr int position(int p) {
  const int byte = p / 2, vector = 2 * (p & 1) + (byte % 16 >= 8);
  return 16 * vector + byte / 16 * 8 + byte % 8;
}
struct Positions {
  int8_t of[kRun] = {};
  constexpr Positions() {
    for (int p = 0; p < kRun; p++) of[p] = static_cast<int8_t>(position(p));
  }
};
constexpr Positions kPositions;

struct Int16Product {
  const int16_t* x;       // [M, k] in that order
  const float* x_scales;  // [M, k / granule], with the scale of the codes of w
  int64_t k;
  int shift;          // of a granule
  __m256i low, high;  // bytes of the codes of w

  template <int M>
  static constexpr int kShared = 1;

  template <int M, int R>
  BNB_INLINE void multiply(const Piece& piece, const uint8_t* packed, const uint8_t* ahead, int64_t,
                           const float* const (&scales)[R], F32 (&acc)[M][R]) const {
    const __m256i nibble = _mm256_set1_epi8(15);
    const int64_t granules = k >> shift;
    for (int64_t i = 0; i < piece.full_runs; i++) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + i * (kRun / 2)));
      __builtin_prefetch(ahead + i * (kRun / 2));
      __m256i w[4];
#pragma GCC unroll 2
      for (int h = 0; h < 2; h++) {
        const __m256i codes = _mm256_and_si256(h ? bytes : _mm256_srli_epi16(bytes, 4), nibble);
        const __m256i l = _mm256_shuffle_epi8(low, codes), u = _mm256_shuffle_epi8(high, codes);
        w[2 * h] = _mm256_unpacklo_epi8(l, u);
        w[2 * h + 1] = _mm256_unpackhi_epi8(l, u);
      }
      const int64_t at = piece.k0 + i * kRun;
      const F32 scale = run_scale(scales[0] + ((i * kRun) >> shift), shift, false);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const auto* xm = reinterpret_cast<const __m256i*>(x + m * k + at);
        const auto dot = [&](int j) { return _mm256_madd_epi16(w[j], _mm256_loadu_si256(xm + j)); };
        const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(dot(0), dot(1)), _mm256_add_epi32(dot(2), dot(3)));
        const F32 both = scale * run_scale(x_scales + m * granules + (at >> shift), shift, false);
        acc[m][0] = fma(to_f32({sum}), both, acc[m][0]);
      }
    }
  }
};

// `count` floats, a granule, into their places in a run; gives the scale of a product with a code of w.
template <class T>
float quantize_granule(const T* x, int first, int count, int16_t* run) {
  I32 largest = zero_i32();
  for (int i = 0; i < count; i += kWidth) largest = max(largest, bitcast(abs(load(x + i))));
  const Granule granule = granule_of(largest, kCodes);
  for (int i = 0; i < count; i += kWidth) {
    alignas(32) int32_t q[kWidth];
    store(q, granule.codes(load(x + i)));
    for (int lane = 0; lane < kWidth; lane++) run[kPositions.of[first + i + lane]] = static_cast<int16_t>(q[lane]);
  }
  return granule.scale * (1.0f / kWeightCodes);
}

template <class T>
void quantize_row(const T* x, int64_t k, int shift, int16_t* codes, float* scales) {
  const int granule = 1 << shift;
  for (int64_t at = 0; at < k; at += kRun)
    for (int first = 0; first < kRun; first += granule)
      *scales++ = quantize_granule(x + at + first, first, granule, codes + at);
}

__m256i byte_plane(QuantType type, int byte) {
  alignas(16) uint8_t bytes[16];
  const float* table = kValues4bit[static_cast<int>(type)].v;
  for (int code = 0; code < 16; code++)
    bytes[code] = static_cast<uint8_t>(__builtin_lrintf(kWeightCodes * table[code]) >> (8 * byte));
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

}  // namespace

bool linear_4bit_int16(const Linear4BitArgs& a) {
  if (a.w.activations == ActivationQuant::none || a.plan != Linear4BitPlan::small) return false;
  const int shift = granule_shift(a.w.blocksize);
  const int64_t granules = a.k >> shift;
  const Scratch<float> scales(a.m * granules + a.m * a.k / 2);
  auto* x = reinterpret_cast<int16_t*>(scales + a.m * granules);
  visit_float(a.dtype, [&](auto t) {
    for (int64_t m = 0; m < a.m; m++)
      quantize_row(static_cast<const decltype(t)*>(a.x) + m * a.k, a.k, shift, x + m * a.k, scales + m * granules);
  });
  const Int16Product product = {x, scales, a.k, shift, byte_plane(a.w.type, 0), byte_plane(a.w.type, 1)};
  few_rows_product(a, 0, a.m, product);
  return true;
}

#else
bool linear_4bit_int16(const Linear4BitArgs&) { return false; }
#endif

}  // namespace bnb::BNB_ISA
