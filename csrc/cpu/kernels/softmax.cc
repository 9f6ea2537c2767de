// Softmax row by row: maximum, exponentials and their sum, scale. The row stays in cache between the passes.
#include "kernels/softmax.h"

#include "cpu/math.h"
#include "cpu/parallel.h"

namespace bnb::BNB_ISA {
namespace {

// Calls f(i, count) for each vector of a row; count is width except at the end.
template <class F>
BNB_INLINE void each_vector(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) f(i, int64_t{F32::width});
  if (i < n) f(i, n - i);
}

// The two kinds of access, so that whole vectors pay for no mask.
template <class T>
BNB_INLINE F32 read(const T* p, int64_t count) {
  return count == F32::width ? load(p) : load_n(p, count);
}
template <class T>
BNB_INLINE void write(T* p, F32 x, int64_t count) {
  count == F32::width ? store(p, x) : store_n(p, x, count);
}

template <class T>
void softmax_row(const T* x, T* y, float* row, int64_t n, bool log) {
  const F32 lowest = set1(-__builtin_inff());
  F32 top = lowest;
  each_vector(n, [&](int64_t i, int64_t count) {
    const F32 v = read(x + i, count);
    store_n(row + i, v, count);
    top = max(select(first_n(count), v, lowest), top);
  });
  const F32 shift = set1(reduce_max(top));
  F32 sums = zero();
  each_vector(n, [&](int64_t i, int64_t count) {
    const F32 d = read(row + i, count) - shift;
    const F32 e = exp(d);
    write(row + i, log ? d : e, count);
    sums += select(first_n(count), e, zero());
  });
  const F32 sum = set1(reduce_add(sums));
  const F32 log_sum = BNB_ISA::log(sum), factor = set1(1.0f) / sum;
  each_vector(n, [&](int64_t i, int64_t count) {
    const F32 v = read(row + i, count);
    write(y + i, log ? v - log_sum : v * factor, count);
  });
}

template <class T>
void softmax_row_backward(const T* y, const T* dy, T* dx, int64_t n, bool log) {
  F32 sums = zero();
  each_vector(n, [&](int64_t i, int64_t count) {
    const F32 g = read(dy + i, count);
    sums = log ? sums + g : fma(read(y + i, count), g, sums);
  });
  const F32 sum = set1(reduce_add(sums));
  each_vector(n, [&](int64_t i, int64_t count) {
    const F32 g = read(dy + i, count), v = read(y + i, count);
    write(dx + i, log ? fnma(exp(v), sum, g) : v * (g - sum), count);
  });
}

int64_t rows_per_item(int64_t cols) { return 1 + 16384 / (cols + 1); }

}  // namespace

void softmax(const SoftmaxArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.rows, rows_per_item(a.cols), [&](int64_t begin, int64_t end) {
      const Scratch<float> row(a.cols);
      for (int64_t r = begin; r < end; r++)
        softmax_row(static_cast<const T*>(a.x) + r * a.cols, static_cast<T*>(a.y) + r * a.cols, row, a.cols, a.log);
    });
  });
}

void softmax_backward(const SoftmaxBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.rows, rows_per_item(a.cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        softmax_row_backward(static_cast<const T*>(a.y) + r * a.cols, static_cast<const T*>(a.dy) + r * a.cols,
                             static_cast<T*>(a.dx) + r * a.cols, a.cols, a.log);
    });
  });
}

}  // namespace bnb::BNB_ISA
