// y = min(max(x, low), high), elementwise; dx = dy where low <= x <= high, else 0. NaN stays NaN.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct ClampArgs {
  const void* x;  // [n] dtype
  void* y;        // [n] dtype
  int64_t n;
  float low, high;  // low <= high
  DType dtype;
};
BNB_KERNEL(clamp, ClampArgs)

struct ClampBackwardArgs {
  const void* dy;  // [n] dtype
  const void* x;   // [n] dtype
  void* dx;        // [n] dtype
  int64_t n;
  float low, high;
  DType dtype;
};
BNB_KERNEL(clamp_backward, ClampBackwardArgs)

}  // namespace bnb
