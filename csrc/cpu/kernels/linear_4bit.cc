// y = x @ dequantize(w)^T + bias for a few rows of x, and the switch between the plans.
//
// Layout    x is permuted once per call into the order of the decoder, K padded to whole runs with zeros.
// Work      An item is 64 rows of w. Each decoded vector is used for all rows of x, so w is read once, and is asked for
//           ahead of its use: it comes from memory, and a few rows side by side are too much for the hardware's
//           prefetcher. Several rows of x pass through L1 in pieces of K.
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
// Of several rows of x this many floats at a time, so that they stay in L1 while the rows of w pass by.
constexpr int64_t kNearFloats = 4096;

// Output rows that share each load of x.
template <int M>
constexpr int kShared = BNB_ISA_LEVEL == 2 ? (M <= 2 ? 4 : 2) : 1;

struct Rows {
  const float* x;  // [M, padded_k] in decoder order
  int64_t padded_k;
  int shift;  // of a granule of scales
};

// A piece of K that is multiplied at once.
struct Piece {
  int64_t k0, full_runs;
  bool half_run;
};

// acc[m][r] += row m of x times row r of w over a piece of K, for R rows of w. What lies at `ahead`, in as many rows,
// is asked for on the way.
template <int M, int R>
BNB_INLINE void multiply(const Decoder& decoder, const Rows& rows, const Piece& piece, const uint8_t* packed,
                         const uint8_t* ahead, int64_t row_bytes, const float* const (&scales)[R], F32 (&acc)[M][R]) {
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
      scale[r] = run_scale(scales[r] + ((i * kRun) >> rows.shift), rows.shift, half);
    }
    const float* x = rows.x + piece.k0 + i * kRun;
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
          const F32 xv = held(load(x + m * rows.padded_k + (4 * h.value + j) * kWidth));
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

// An item of `count` rows of w from n0 on, for M rows of x, in pieces of K: sums[row][m] are vectors until the last
// piece.
template <int M>
struct ItemProduct {
  const Linear4BitArgs& a;
  const Decoder& decoder;
  const Rows& rows;
  int64_t m0, n0, count, depth, ahead;
  float* sums;

  // Row `row` of the item, piece from k0 on; rows past the item's end are those of the next piece, and past its last
  // those of the next item.
  const uint8_t* weights_at(int64_t row, int64_t k0) const {
    if (row >= count && k0 + depth < a.k) return weights_at(row - count, k0 + depth);
    return a.w.packed + ((n0 + row) * a.k + (row < count ? k0 : 0)) / 2;
  }

  template <int R>
  void rows_product(int64_t row, int64_t k0) const {
    const int64_t k_count = a.k - k0 < depth ? a.k - k0 : depth, granules = k_count >> rows.shift;
    float* buffer = scratch<float>(1, R * granules);
    const float* scales[R];
    for (int r = 0; r < R; r++)
      scales[r] = granule_scales(a.w, (n0 + row + r) * a.k + k0, granules, rows.shift, buffer + r * granules);
    if (k0 == 0) prefetch_scales(a.w, (n0 + row + ahead) * a.k, R * a.k);
    float* at = sums + row * M * kWidth;
    F32 acc[M][R];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[m][r] = k0 == 0 ? zero() : load(at + (r * M + m) * kWidth);
    multiply<M, R>(decoder, rows, {k0, k_count / kRun, k_count % kRun != 0}, weights_at(row, k0),
                   weights_at(row + ahead, k0), a.k / 2, scales, acc);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) store(at + (r * M + m) * kWidth, acc[m][r]);
  }

  void run() const {
    constexpr int R = kShared<M>;
    for (int64_t k0 = 0; k0 < a.k; k0 += depth) {
      int64_t row = 0;
      for (; row + R <= count; row += R) rows_product<R>(row, k0);
      for (; row < count; row++) rows_product<1>(row, k0);
    }
    visit_float(a.y_dtype, [&](auto t) {
      using T = decltype(t);
      visit_float(a.bias_dtype, [&](auto b) {
        const auto* bias = static_cast<const decltype(b)*>(a.bias);
        for (int64_t row = 0; row < count; row++) {
          for (int m = 0; m < M; m++) {
            const float sum =
                reduce_add(load(sums + (row * M + m) * kWidth)) + (bias ? to_float(bias[n0 + row]) : 0.0f);
            const int64_t to = (m0 + m) * a.n + n0 + row;
            const float before = a.residual ? to_float(static_cast<const T*>(a.residual)[to]) : 0.0f;
            static_cast<T*>(a.y)[to] = from_float<T>(sum + before);
          }
        }
      });
    });
  }
};

template <int M>
void small_product(const Linear4BitArgs& a, int64_t m0, const Rows& rows) {
  constexpr int R = kShared<M>;
  const int64_t depth = M == 1 ? a.k : smaller(a.k, kNearFloats / M / kRun * kRun);
  const int64_t ahead = ceil_div(kAhead, R * depth / 2) * R;
  // Neighbouring items go to one thread, which then knows what it will need next.
  const int64_t items = ceil_div(a.n, kItem), run_of_items = ceil_div(items, 8 * thread_count());
  parallel_for(a.n, run_of_items * kItem, [&](int64_t begin, int64_t end) {
    const Decoder decoder(a.w.type);
    float* sums = scratch<float>(2, kItem * M * kWidth);
    for (int64_t n = begin; n < end; n += kItem)
      ItemProduct<M>{a, decoder, rows, m0, n, smaller(kItem, end - n), depth, ahead, sums}.run();
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
  const Rows rows = {x, padded_k, granule_shift(a.w.blocksize)};
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
