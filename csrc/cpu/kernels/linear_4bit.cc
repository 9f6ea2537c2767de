// y = x @ dequantize(w)^T + bias for a few rows of x, and the switch between the plans.
//
// Layout    x is permuted once per call into the order of the decoder, K padded to whole runs with zeros.
// Work      An item is 64 rows of w. Each decoded vector is used for all rows of x, so w is read once.
// Numerics  Float32 throughout: up to 4 rows the scale multiplies the sum of a run, above it the weight.
//           Rows are never split, so the result does not depend on the number of threads.
// Needs     K % 64 == 0 and K > 0 for plan `small`.
#include "kernels/linear_4bit.h"

#include "cpu/decode_4bit.h"

namespace bnb::BNB_ISA {

void linear_4bit_packed(const Linear4BitArgs& a);  // linear_4bit_packed.cc

namespace {

template <int value_>
struct Constant {
  static constexpr int value = value_;
};

constexpr int kMaxRows = 8;
// Permuted rows of x that may exist at once, in floats: no temporary exceeds 1 MB.
constexpr int64_t kMaxPermuted = int64_t{1} << 18;
constexpr int64_t kItem = 64;

// Output rows that share each load of x.
template <int M>
constexpr int kShared = BNB_ISA_LEVEL == 2 ? 2 : 1;

struct Rows {
  const float* x;  // [M, padded_k] in decoder order
  int64_t padded_k, full_runs;
  bool half_run;
  int shift;
};

// acc[m][r] = row m of x times row r of w, for R rows of w.
template <int M, int R>
BNB_INLINE void multiply(const Decoder& decoder, const Rows& rows, const uint8_t* const (&packed)[R],
                         const float* const (&scales)[R], F32 (&acc)[M][R]) {
  constexpr bool kScaleWeights = M > 4;
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) acc[m][r] = zero();

  const auto run = [&](int64_t i, bool half) __attribute__((always_inline)) {
    typename Decoder::Bytes bytes[R];
    F32 scale[R], partial[M][R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const uint8_t* p = packed[r] + i * (kRun / 2);
#if BNB_ISA_LEVEL == 2
      bytes[r] = half ? decoder.load_half_run(p) : decoder.load_run(p);
#else
      bytes[r] = decoder.load_run(p);
#endif
      __builtin_prefetch(p + 1024);
      scale[r] = run_scale(scales[r] + ((i * kRun) >> rows.shift), rows.shift, half);
    }
    const float* x = rows.x + i * kRun;
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
          const F32 xv = load(x + m * rows.padded_k + (4 * h.value + j) * kWidth);
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
  for (int64_t i = 0; i < rows.full_runs; i++) run(i, false);
  if (kHasHalfRun && rows.half_run) run(rows.full_runs, true);
}

BNB_INLINE float bias_at(const Linear4BitArgs& a, int64_t n) {
  float bias = 0;
  if (a.bias) visit_float(a.bias_dtype, [&](auto t) { bias = to_float(static_cast<const decltype(t)*>(a.bias)[n]); });
  return bias;
}

// R rows of w from n on, for M rows of x from m0 on.
template <int M, int R>
void rows_product(const Linear4BitArgs& a, const Decoder& decoder, const Rows& rows, int64_t m0, int64_t n) {
  const int64_t granules = a.k >> rows.shift;
  float* buffer = scratch<float>(1, R * granules);
  const uint8_t* packed[R];
  const float* scales[R];
  for (int r = 0; r < R; r++) {
    packed[r] = a.w.packed + (n + r) * a.k / 2;
    scales[r] = granule_scales(a.w, (n + r) * a.k, granules, rows.shift, buffer + r * granules);
  }
  F32 acc[M][R];
  multiply<M, R>(decoder, rows, packed, scales, acc);
  for (int r = 0; r < R; r++) {
    const float bias = bias_at(a, n + r);
    for (int m = 0; m < M; m++) {
      const float sum = reduce_add(acc[m][r]) + bias;
      const int64_t at = (m0 + m) * a.n + n + r;
      visit_float(a.y_dtype, [&](auto t) {
        using T = decltype(t);
        const float before = a.residual ? to_float(static_cast<const T*>(a.residual)[at]) : 0.0f;
        static_cast<T*>(a.y)[at] = from_float<T>(sum + before);
      });
    }
  }
}

template <int M>
void small_product(const Linear4BitArgs& a, int64_t m0, const Rows& rows) {
  parallel_for(a.n, kItem, [&](int64_t begin, int64_t end) {
    const Decoder decoder(a.w.type);
    constexpr int R = kShared<M>;
    int64_t n = begin;
    for (; n + R <= end; n += R) rows_product<M, R>(a, decoder, rows, m0, n);
    for (; n < end; n++) rows_product<M, 1>(a, decoder, rows, m0, n);
  });
}

template <int M>
void dispatch(const Linear4BitArgs& a, int64_t m0, int64_t count, const Rows& rows) {
  if (count == M) return small_product<M>(a, m0, rows);
  if constexpr (M > 1) dispatch<M - 1>(a, m0, count, rows);
}

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
  float* x = scratch<float>(0, (a.m < step ? a.m : step) * padded_k);
  const Rows rows = {x, padded_k, a.k / kRun, a.k % kRun != 0, granule_shift(a.w.blocksize)};
  for (int64_t m0 = 0; m0 < a.m; m0 += step) {
    const int64_t count = a.m - m0 < step ? a.m - m0 : step;
    visit_float(a.dtype, [&](auto t) {
      for (int64_t m = 0; m < count; m++)
        permute_row(static_cast<const decltype(t)*>(a.x) + (m0 + m) * a.k, a.k, padded_k, x + m * padded_k);
    });
    dispatch<kMaxRows>(a, m0, count, rows);
  }
}

}  // namespace

void linear_4bit(const Linear4BitArgs& a) {
  if (a.m == 0 || a.n == 0) return;
  if (a.plan == Linear4BitPlan::small) {
    linear_4bit_small(a);
  } else {
    linear_4bit_packed(a);
  }
}

}  // namespace bnb::BNB_ISA
