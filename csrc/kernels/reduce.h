// Reductions of the middle axis of x [outer, n, inner], and their gradients. Sums are float32 in a tree that
// depends on the shape only, never on the number of threads. A NaN makes a maximum or minimum NaN.
#pragma once
#include "core/kernel.h"

namespace bnb {

// The numbers cross to JavaScript (src/ops/reduce.ts lists the same order).
enum class ReduceOp : int32_t { sum, mean, max, min };

struct ReduceArgs {
  const void* x;  // [outer, n, inner] dtype
  void* y;        // [outer, inner] y_dtype
  int64_t outer, n, inner;
  ReduceOp op;  // n > 0 for max and min
  DType dtype;
  DType y_dtype;
};
BNB_KERNEL(reduce, ReduceArgs)

// Index of the first maximum; the first NaN counts as one.
struct ArgmaxArgs {
  const void* x;  // [outer, n, inner] dtype
  int32_t* y;     // [outer, inner]
  int64_t outer, n, inner;
  DType dtype;
};
BNB_KERNEL(argmax, ArgmaxArgs)

// sum: dx = dy; mean: dx = dy / n; max and min: dy shared evenly among the elements equal to y.
struct ReduceBackwardArgs {
  const void* dy;  // [outer, inner] dtype
  const void* x;   // [outer, n, inner] dtype; null for sum and mean
  const void* y;   // [outer, inner] dtype; null for sum and mean
  void* dx;        // [outer, n, inner] dtype
  int64_t outer, n, inner;
  ReduceOp op;
  DType dtype;
};
BNB_KERNEL(reduce_backward, ReduceBackwardArgs)

}  // namespace bnb
