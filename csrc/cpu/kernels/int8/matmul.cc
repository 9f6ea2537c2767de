// Integer products, their rescaling, and the fused linear layer with outlier columns.

#include "cpu/kernels/int8/dot.h"
#include "cpu/parallel.h"
#include "cpu/work.h"
#include "kernels/int8.h"

namespace bnb::BNB_ISA {
namespace {

// float32(1 / 127^2) and float32(1 / 127)
constexpr float kInv127Squared = 0x1.040c2p-14f;
constexpr float kInv127 = 0x1.020408p-7f;
// Codes within +-127 fill an int32 after 133144 terms.
constexpr int64_t kSplit = 131072;

float load_float(const void* p, int64_t i, DType dtype) {
  float value = 0;
  visit_float(dtype, [&](auto t) { value = to_float(static_cast<const decltype(t)*>(p)[i]); });
  return value;
}

// Columns per work item: about 2 M multiply-adds.
int64_t cols_per_item(int64_t m, int64_t k) {
  const int64_t work = m * k < 1 ? 1 : m * k;
  const int64_t cols = ((2 << 20) / work + kDotCols - 1) / kDotCols * kDotCols;
  return cols < kDotCols ? kDotCols : cols;
}

// The outliers' columns, written to `columns`, and how many.
int64_t find_outliers(const Int8LinearArgs& a, int64_t* columns) {
  int64_t count = 0;
  if (a.outlier_mask)
    for (int64_t j = 0; j < a.k; j++)
      if (a.outlier_mask[j]) columns[count++] = j;
  return count;
}

// Outlier columns gathered once: their positions, and x there as float32 [m, count].
struct Outliers {
  const Scratch<int64_t> columns;
  const int64_t count;
  const Scratch<float> x;

  explicit Outliers(const Int8LinearArgs& a)
      : columns(a.k, a.outlier_mask), count(find_outliers(a, columns)), x(a.m * count) {
    for (int64_t i = 0; i < a.m; i++)
      for (int64_t o = 0; o < count; o++) x[i * count + o] = load_float(a.x, i * a.k + columns[o], a.dtype);
  }
};

// The outlier columns of weight row n as float32.
void gather_weight_row(const Int8LinearArgs& a, const Outliers& outliers, int64_t n, float* row) {
  for (int64_t o = 0; o < outliers.count; o++) {
    const int64_t at = n * a.k + outliers.columns[o];
    row[o] = a.weight ? load_float(a.weight, at, a.weight_dtype)
                      : static_cast<float>(a.weight_codes[at]) * a.weight_stats[n] * kInv127;
  }
}

float outlier_sum(const float* x, const float* w, int64_t count) {
  F32 acc = zero();
  for (int64_t o = 0; o < count; o += F32::width) {
    const int64_t left = count - o;
    acc = left >= F32::width ? fma(load(x + o), load(w + o), acc) : fma(load_n(x + o, left), load_n(w + o, left), acc);
  }
  return reduce_add(acc);
}

template <class T>
void linear(const Int8LinearArgs& a) {
  const Outliers outliers(a);
  T* y = static_cast<T*>(a.y);
  parallel_for(a.n, cols_per_item(a.m, a.k), [&](int64_t begin, int64_t end) {
    const Scratch<float> weight_rows(kDotCols * outliers.count);
    // The parts of a long sum meet here before they are scaled: [m, columns of this item].
    const bool is_split = a.k > kSplit;
    const Scratch<double> parts(a.m * (end - begin), is_split);
    for (int64_t from = 0; from < a.k || from == 0; from += kSplit) {
      const int64_t span = a.k - from < kSplit ? a.k - from : kSplit;
      const bool is_last = from + kSplit >= a.k;
      int64_t gathered = -1;
      for_each_tile(a.codes + from, a.weight_codes + from, a.m, begin, end, span, a.k,
                    [&](int64_t i0, int64_t j0, const auto& sums, int rows, int cols) {
                      if (is_last && gathered != j0) {
                        for (int j = 0; j < cols; j++)
                          gather_weight_row(a, outliers, j0 + j, weight_rows + j * outliers.count);
                        gathered = j0;
                      }
                      for (int i = 0; i < rows; i++) {
                        for (int j = 0; j < cols; j++) {
                          const int64_t m = i0 + i, n = j0 + j;
                          float c = static_cast<float>(sums[i][j]);
                          if (is_split) {
                            double& part = parts[m * (end - begin) + n - begin];
                            part = (from == 0 ? 0.0 : part) + sums[i][j];
                            c = static_cast<float>(part);
                          }
                          if (!is_last) continue;
                          float value = c * a.stats[m] * a.weight_stats[n] * kInv127Squared;
                          if (outliers.count > 0)
                            value += outlier_sum(outliers.x + m * outliers.count, weight_rows + j * outliers.count,
                                                 outliers.count);
                          if (a.bias) value += load_float(a.bias, n, a.bias_dtype);
                          y[m * a.n + n] = from_float<T>(value);
                        }
                      }
                    });
    }
  });
}

}  // namespace

void int8_matmul(const Int8MatmulArgs& a) {
  parallel_for(a.n, cols_per_item(a.m, a.k), [&](int64_t begin, int64_t end) {
    for_each_tile(a.a, a.b, a.m, begin, end, a.k, a.k,
                  [&](int64_t i0, int64_t j0, const auto& sums, int rows, int cols) {
                    for (int i = 0; i < rows; i++)
                      for (int j = 0; j < cols; j++) a.c[(i0 + i) * a.n + j0 + j] = sums[i][j];
                  });
  });
}

void int8_dequantize_product(const Int8DequantizeProductArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    T* y = static_cast<T*>(a.y);
    parallel_for(a.m, items_of(1 << 15, a.n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        for (int64_t j = 0; j < a.n; j++) {
          float value = static_cast<float>(a.c[i * a.n + j]) * a.row_stats[i] * a.col_stats[j] * kInv127Squared;
          if (a.bias) value += load_float(a.bias, j, a.bias_dtype);
          y[i * a.n + j] = from_float<T>(value);
        }
      }
    });
  });
}

void int8_linear(const Int8LinearArgs& a) {
  visit_float(a.dtype, [&](auto t) { linear<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
