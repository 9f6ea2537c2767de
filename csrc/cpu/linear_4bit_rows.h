// The product of a few rows of x with a 4-bit weight, row by row of w, for what multiplies a piece of a row.
//
// Work      An item is 64 rows of w. Each decoded vector is used for all rows of x, so w is read once, and is asked for
//           ahead of its use: it comes from memory, and a few rows side by side are too much for the hardware's
//           prefetcher. Several rows of x pass through L1 in pieces of K.
// Numerics  Rows are never split, so the result does not depend on the number of threads.
#pragma once
#include "cpu/decode_4bit.h"
#include "kernels/linear_4bit.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int kMaxRows = 8;
constexpr int64_t kItem = 64;
// Of several rows of x this many numbers at a time, so that they stay in L1 while the rows of w pass by.
constexpr int64_t kNear = 4096;

// A piece of K that is multiplied at once.
struct Piece {
  int64_t k0, full_runs;
  bool half_run;
};

// An item of `count` rows of w from n0 on, for M rows of x, in pieces of K: sums[row][m] are vectors until the last
// piece. Product says how many rows of w it multiplies at once, of how many weights a granule is (`shift`), and has
//   multiply(piece, packed, ahead, row_bytes, scales, acc): acc[m][r] += row m of x times row r of w over the piece;
//   what lies at `ahead`, in as many rows, is asked for on the way.
template <class Product, int M>
struct ItemProduct {
  const Linear4BitArgs& a;
  const Product& product;
  int64_t m0, n0, count, depth, ahead;
  float *sums, *scales_of_rows;

  // Row `row` of the item, piece from k0 on; rows past the item's end are those of the next piece, and past its last
  // those of the next item.
  const uint8_t* weights_at(int64_t row, int64_t k0) const {
    if (row >= count && k0 + depth < a.k) return weights_at(row - count, k0 + depth);
    return a.w.packed + ((n0 + row) * a.k + (row < count ? k0 : 0)) / 2;
  }

  template <int R>
  void rows_product(int64_t row, int64_t k0) const {
    const int64_t k_count = a.k - k0 < depth ? a.k - k0 : depth, granules = k_count >> product.shift;
    const float* scales[R];
    for (int r = 0; r < R; r++)
      scales[r] =
          granule_scales(a.w, (n0 + row + r) * a.k + k0, granules, product.shift, scales_of_rows + r * granules);
    if (k0 == 0) prefetch_scales(a.w, (n0 + row + ahead) * a.k, R * a.k);
    float* at = sums + row * M * kWidth;
    F32 acc[M][R];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[m][r] = k0 == 0 ? zero() : load(at + (r * M + m) * kWidth);
    product.multiply({k0, k_count / kRun, k_count % kRun != 0}, weights_at(row, k0), weights_at(row + ahead, k0),
                     a.k / 2, scales, acc);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) store(at + (r * M + m) * kWidth, acc[m][r]);
  }

  void run() const {
    constexpr int R = Product::template kShared<M>;
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

template <class Product, int M>
void rows_product(const Linear4BitArgs& a, int64_t m0, const Product& product) {
  constexpr int R = Product::template kShared<M>;
  const int64_t depth = M == 1 ? a.k : smaller(a.k, kNear / M / kRun * kRun);
  const int64_t ahead = ceil_div(kAhead, R * depth / 2) * R;
  // Neighbouring items go to one thread, which then knows what it will need next.
  const int64_t items = ceil_div(a.n, kItem), run_of_items = ceil_div(items, 8 * thread_count());
  parallel_for(a.n, run_of_items * kItem, [&](int64_t begin, int64_t end) {
    const Product here = product;
    const Scratch<float> sums(kItem * M * kWidth), scales(R * (depth >> product.shift));
    for (int64_t n = begin; n < end; n += kItem)
      ItemProduct<Product, M>{a, here, m0, n, smaller(kItem, end - n), depth, ahead, sums, scales}.run();
  });
}

// For `count` rows of x from m0 on, at most M.
template <class Product, int M = kMaxRows>
void few_rows_product(const Linear4BitArgs& a, int64_t m0, int64_t count, const Product& product) {
  if (count == M) return rows_product<Product, M>(a, m0, product);
  if constexpr (M > 1) few_rows_product<Product, M - 1>(a, m0, count, product);
}

}  // namespace
}  // namespace bnb::BNB_ISA
