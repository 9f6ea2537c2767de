// c = a * b (+ bias) (+ c), batched, summed in float32 and rounded once to the type of c.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct MatmulArgs {
  const void* a;     // [batch, m, k] dtype_a; [batch, k, m] when transpose_a
  const void* b;     // [batch, k, n] dtype_b; [batch, n, k] when transpose_b
  const void* bias;  // [n] dtype_c, added to every row; null for none
  void* c;           // [batch, m, n] dtype_c
  int64_t batch, m, n, k;
  int64_t stride_a, stride_b;  // elements from one matrix of the batch to the next; 0 repeats the same one
  DType dtype_a, dtype_b, dtype_c;
  bool transpose_a, transpose_b;
  bool accumulate;    // add to what c holds
  int64_t row_c = 0;  // elements from one row of c to the next, 0 for n; anything else only on a GPU
};
BNB_KERNEL(matmul, MatmulArgs)

// The gradient of bias: y[j] = sum over i of x[i, j], in float32.
struct SumRowsArgs {
  const void* x;  // [rows, cols] dtype
  void* y;        // [cols] dtype
  int64_t rows, cols;
  DType dtype;
};
BNB_KERNEL(sum_rows, SumRowsArgs)

// Multiply-adds on registers alone, on every thread: the ceiling that a matrix product is measured against.
struct FmaPeakArgs {
  double* result;      // [2]: multiply-adds done by all threads together, and a number that keeps the work alive
  int64_t iterations;  // per thread
};
BNB_KERNEL(fma_peak, FmaPeakArgs)

}  // namespace bnb
