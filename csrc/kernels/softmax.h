// Softmax and its logarithm over the rows of a matrix, in float32 inside.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct SoftmaxArgs {
  const void* x;  // [rows, cols] dtype
  void* y;        // [rows, cols] dtype
  int64_t rows, cols;
  DType dtype;
  bool log;
};
BNB_KERNEL(softmax, SoftmaxArgs)

struct SoftmaxBackwardArgs {
  const void* y;   // [rows, cols] dtype, the result of the forward pass
  const void* dy;  // [rows, cols] dtype
  void* dx;        // [rows, cols] dtype
  int64_t rows, cols;
  DType dtype;
  bool log;
};
BNB_KERNEL(softmax_backward, SoftmaxBackwardArgs)

}  // namespace bnb
