// y = x @ dequantize(w)^T + bias + residual for a few rows of x that may be rounded to 8 bits, where decoding is most
// of the work: a row of w is multiplied as it lies, four bytes to a lane.
//
// Layout    A run of w is a vector of packed bytes: the high nibbles are weights 0, 2, 4, …, the low ones the others.
//           A run of x has its codes in that order, two vectors, then what the sums of its lanes start at, then the
//           scales of the lanes.
// Work      as cpu/linear_4bit_rows.h
// Numerics  Codes as cpu/activation_codes.h says, a granule being 64 of K, or 32 for blocks of 32. A lane sums
//           8 products exactly, with VNNI or without; sums join float32 ones with both scales.
// Needs     AVX2, K % 64 == 0 and K > 0.
#include "cpu/activation_codes.h"
#include "cpu/linear_4bit_rows.h"

namespace bnb::BNB_ISA {

bool linear_4bit_int8_rows(const Linear4BitArgs& a);

#if BNB_ISA_LEVEL >= 1
namespace {

// With more rows of x the exact product is about as fast, or with VNNI that of linear_4bit_int8.cc.
constexpr int64_t kMostRows = 32;
constexpr int64_t kVectorBytes = 4 * kWidth, kRunBytes = 4 * kVectorBytes;

BNB_INLINE I32 load_lanes(const uint8_t* p) { return load_i32(reinterpret_cast<const int32_t*>(p)); }

#if BNB_ISA_LEVEL == 1
// Of bytes of at most 127: pairs stay below 2^15.
BNB_INLINE I32 byte_products(I32 a, I32 b) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(b.v), _mm256_sign_epi8(a.v, b.v));
  return {_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))};
}
#endif

// kVnni: the CPU adds up products of bytes, with 128 more in those of w, which is what the sums start at.
template <bool kVnni>
struct Int8Product {
  const uint8_t* x;  // [M, runs][kRunBytes]
  int64_t row_bytes;
  int shift;  // of a granule
  I32 table;

  // Output rows that share each load of x.
  template <int M>
  static constexpr int kShared = BNB_ISA_LEVEL == 1 || M > 2 ? 2 : 4;

  template <int M, int R>
  BNB_INLINE void multiply(const Piece& piece, const uint8_t* packed, const uint8_t* ahead, int64_t packed_row,
                           const float* const (&scales)[R], F32 (&acc)[M][R]) const {
    const auto run = [&](int64_t i, bool half) __attribute__((always_inline)) {
      I32 even[R], odd[R];
      F32 scale[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const uint8_t* p = packed + r * packed_row + i * (kRun / 2);
#if BNB_ISA_LEVEL == 2
        const I32 bytes = {half ? _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
                                : _mm512_loadu_si512(p)};
#else
        const I32 bytes = load_lanes(p);
#endif
        __builtin_prefetch(ahead + r * packed_row + i * (kRun / 2));
        even[r] = look_up_bytes(table, shr(bytes, 4));
        odd[r] = look_up_bytes(table, bytes);
        scale[r] = run_scale(scales[r] + ((i * kRun) >> shift), shift, half);
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const uint8_t* at = x + m * row_bytes + (piece.k0 / kRun + i) * kRunBytes;
        const I32 x_even = load_lanes(at), x_odd = load_lanes(at + kVectorBytes);
        const F32 x_scale = load(reinterpret_cast<const float*>(at + 3 * kVectorBytes));
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          I32 sum;
          if constexpr (kVnni) {
            sum = load_lanes(at + 2 * kVectorBytes);
            add_byte_products(sum, even[r], x_even);
            add_byte_products(sum, odd[r], x_odd);
          } else {
            sum = byte_products(even[r], x_even) + byte_products(odd[r], x_odd);
          }
          acc[m][r] = fma(to_f32(sum), scale[r] * x_scale, acc[m][r]);
        }
      }
    };
    for (int64_t i = 0; i < piece.full_runs; i++) run(i, false);
    if (kHasHalfRun && piece.half_run) run(piece.full_runs, true);
  }
};

// `count` floats, a run or its first half, into their run.
template <class T>
void quantize_run(const T* x, int64_t count, int shift, uint8_t* run) {
  alignas(64) int8_t codes[kRun] = {};
  auto* lane_scales = reinterpret_cast<float*>(run + 3 * kVectorBytes);
  const int64_t granule = int64_t{1} << shift;
  for (int64_t first = 0; first < kRun; first += granule) {
    Granule g = {0.0f, 0.0f, true};
    if (first < count) {
      I32 largest = zero_i32();
      for (int64_t i = first; i < first + granule; i += kWidth) largest = max(largest, bitcast(abs(load(x + i))));
      g = granule_of(largest, kByteCodes);
      for (int64_t i = first; i < first + granule; i += 16) {
        I32 q[16 / kWidth];
        for (int v = 0; v < 16 / kWidth; v++) q[v] = g.codes(load(x + i + v * kWidth));
        _mm_store_si128(reinterpret_cast<__m128i*>(codes + i), bytes_of(q));
      }
    }
    for (int64_t lane = first / 8; lane < (first + granule) / 8; lane++)
      lane_scales[lane] = g.scale * (1.0f / kByteCodes);
  }
  for (int64_t i = 0; i < kRun / 2; i++) {
    run[i] = static_cast<uint8_t>(codes[2 * i]);
    run[kVectorBytes + i] = static_cast<uint8_t>(codes[2 * i + 1]);
  }
  alignas(64) int32_t starts[kWidth];
  for (int lane = 0; lane < kWidth; lane++) {
    int32_t sum = 0;
    for (int i = 0; i < 8; i++) sum += codes[8 * lane + i];
    starts[lane] = -128 * sum;
  }
  store(reinterpret_cast<int32_t*>(run + 2 * kVectorBytes), load_i32(starts));
}

}  // namespace

bool linear_4bit_int8_rows(const Linear4BitArgs& a) {
  if (a.w.activations != ActivationQuant::int8 || a.m > kMostRows) return false;
  const int64_t row_bytes = ceil_div(a.k, kRun) * kRunBytes;
  const Scratch<uint8_t> x(a.m * row_bytes);
  const int shift = granule_shift(a.w.blocksize);
  visit_float(a.dtype, [&](auto t) {
    for (int64_t m = 0; m < a.m; m++) {
      const auto* row = static_cast<const decltype(t)*>(a.x) + m * a.k;
      for (int64_t k = 0; k < a.k; k += kRun)
        quantize_run(row + k, smaller(kRun, a.k - k), shift, x + m * row_bytes + k / kRun * kRunBytes);
    }
  });
  const auto multiply = [&](auto product) {
    for (int64_t m = 0; m < a.m; m += kMaxRows) {
      product.x = x + m * row_bytes;
      few_rows_product(a, m, smaller<int64_t>(kMaxRows, a.m - m), product);
    }
  };
#if BNB_ISA_LEVEL == 1
  if (!multiplies_bytes()) {
    multiply(Int8Product<false>{x, row_bytes, shift, byte_table(a.w.type, 0)});
    return true;
  }
#endif
  multiply(Int8Product<true>{x, row_bytes, shift, byte_table(a.w.type)});
  return true;
}

#else
bool linear_4bit_int8_rows(const Linear4BitArgs&) { return false; }
#endif

}  // namespace bnb::BNB_ISA
