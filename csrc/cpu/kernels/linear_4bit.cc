// y = x @ dequantize(w)^T + bias for a few rows of x, and the switch between the plans.
//
// Layout    x is permuted once per call into the order of the decoder, K padded to whole runs with zeros.
// Work      as cpu/linear_4bit_rows.h
// Numerics  Float32 throughout: up to 4 rows the scale multiplies the sum of a run, above it the weight.
//           Rows are never split, so the result does not depend on the number of threads.
// Needs     K % 64 == 0 and K > 0 for plan `small`.
#include "kernels/linear_4bit.h"

#include "cpu/linear_4bit_rows.h"

namespace bnb::BNB_ISA {

void linear_4bit_packed(const Linear4BitArgs& a);  // linear_4bit_packed.cc
// Whether it was computed: they leave it where they are not the fastest. linear_4bit_int8.cc, …_int8_rows.cc,
// …_int16.cc
bool linear_4bit_int8(const Linear4BitArgs& a);
bool linear_4bit_int8_rows(const Linear4BitArgs& a);
bool linear_4bit_int16(const Linear4BitArgs& a);

namespace {

template <int value_>
struct Constant {
  static constexpr int value = value_;
};

// Permuted rows of x that may exist at once, in floats: no temporary exceeds 1 MB.
constexpr int64_t kMaxPermuted = int64_t{1} << 18;

struct ExactProduct {
  const float* x;  // [M, padded_k] in decoder order
  int64_t padded_k;
  int shift;  // of a granule of scales
  Decoder decoder;

  // Output rows that share each load of x.
  template <int M>
  static constexpr int kShared = BNB_ISA_LEVEL == 2 ? (M <= 2 ? 4 : 2) : 1;

  template <int M, int R>
  BNB_INLINE void multiply(const Piece& piece, const uint8_t* packed, const uint8_t* ahead, int64_t row_bytes,
                           const float* const (&scales)[R], F32 (&acc)[M][R]) const {
    constexpr bool kScaleWeights = M > 4;

    const auto run = [&](int64_t i, bool half) __attribute__((always_inline)) {
      typename Decoder::Bytes bytes[R];
      F32 scale[R], partial[M][R];
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const uint8_t* p = packed + r * row_bytes + i * (kRun / 2);
#if BNB_ISA_LEVEL == 2
        bytes[r] = half ? decoder.load_half_run(p) : decoder.load_run(p);
#else
        bytes[r] = decoder.load_run(p);
#endif
        __builtin_prefetch(ahead + r * row_bytes + i * (kRun / 2));
        scale[r] = run_scale(scales[r] + ((i * kRun) >> shift), shift, half);
      }
      const float* near = x + piece.k0 + i * kRun;
      const auto part = [&](auto h) __attribute__((always_inline)) {
        F32 w[R][4];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          decoder.part<h.value>(bytes[r], w[r]);
          if constexpr (kScaleWeights)
            for (int j = 0; j < 4; j++) w[r][j] = w[r][j] * scale[r];
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
#pragma GCC unroll 8
          for (int m = 0; m < M; m++) {
            const F32 xv = held(load(near + m * padded_k + (4 * h.value + j) * kWidth));
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
              if constexpr (kScaleWeights) {
                acc[m][r] = fma(w[r][j], xv, acc[m][r]);
              } else if (4 * h.value + j == 0) {
                partial[m][r] = w[r][j] * xv;
              } else {
                partial[m][r] = fma(w[r][j], xv, partial[m][r]);
              }
            }
          }
        }
      };
      part(Constant<0>{});
      part(Constant<1>{});
      if constexpr (!kScaleWeights)
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
#pragma GCC unroll 4
          for (int r = 0; r < R; r++) acc[m][r] = fma(scale[r], partial[m][r], acc[m][r]);
    };
    for (int64_t i = 0; i < piece.full_runs; i++) run(i, false);
    if (kHasHalfRun && piece.half_run) run(piece.full_runs, true);
  }
};

// One row of x into decoder order; the padding takes zeros.
template <class T>
void permute_row(const T* x, int64_t k, int64_t padded_k, float* out) {
  for (int64_t i = 0; i < padded_k; i += kRun) {
    if (k - i >= kRun) {
      for (int p = 0; p < kRun; p++) out[i + kRunPositions.of[p]] = to_float(x[i + p]);
    } else {
      for (int p = 0; p < kRun; p++) out[i + kRunPositions.of[p]] = i + p < k ? to_float(x[i + p]) : 0.0f;
    }
  }
}

void linear_4bit_small(const Linear4BitArgs& a) {
  const int64_t padded_k = (a.k + kRun - 1) / kRun * kRun;
  int64_t step = kMaxPermuted / padded_k;
  step = step < 1 ? 1 : step > kMaxRows ? kMaxRows : step;
  const Scratch<float> x((a.m < step ? a.m : step) * padded_k);
  const ExactProduct product = {x, padded_k, granule_shift(a.w.blocksize), Decoder(a.w.type)};
  for (int64_t m0 = 0; m0 < a.m; m0 += step) {
    const int64_t count = a.m - m0 < step ? a.m - m0 : step;
    visit_float(a.dtype, [&](auto t) {
      for (int64_t m = 0; m < count; m++)
        permute_row(static_cast<const decltype(t)*>(a.x) + (m0 + m) * a.k, a.k, padded_k, x + m * padded_k);
    });
    few_rows_product(a, m0, count, product);
  }
}

}  // namespace

void linear_4bit(const Linear4BitArgs& a) {
  if (a.m == 0 || a.n == 0) return;
  if (a.plan != Linear4BitPlan::plain && (linear_4bit_int8(a) || linear_4bit_int8_rows(a) || linear_4bit_int16(a)))
    return;
  if (a.plan == Linear4BitPlan::small) {
    linear_4bit_small(a);
  } else {
    linear_4bit_packed(a);
  }
}

}  // namespace bnb::BNB_ISA
