// y = log(1 + exp(beta x)) / beta, elementwise, and y = x where beta x > threshold; dx = dy / (1 + exp(-beta x)), and
// dx = dy there.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct SoftplusArgs {
  const void* x;  // [n] dtype
  void* y;        // [n] dtype
  int64_t n;
  float beta, threshold;  // beta is finite and not 0
  DType dtype;
};
BNB_KERNEL(softplus, SoftplusArgs)

struct SoftplusBackwardArgs {
  const void* dy;  // [n] dtype
  const void* x;   // [n] dtype
  void* dx;        // [n] dtype
  int64_t n;
  float beta, threshold;
  DType dtype;
};
BNB_KERNEL(softplus_backward, SoftplusBackwardArgs)

}  // namespace bnb
