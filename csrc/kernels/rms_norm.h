// y = x * rstd * weight per row, rstd = 1 / sqrt(mean(x^2) + eps).
#pragma once
#include "core/kernel.h"

namespace bnb {

struct RmsNormArgs {
  const void* x;       // [rows, cols] dtype
  const void* weight;  // [cols] dtype
  void* y;             // [rows, cols] dtype
  float* rstd;         // [rows], kept for the backward pass
  int64_t rows, cols;
  float eps;
  DType dtype;
};
BNB_KERNEL(rms_norm, RmsNormArgs)

struct RmsNormBackwardArgs {
  const void* dy;      // [rows, cols] dtype
  const void* x;       // [rows, cols] dtype
  const void* weight;  // [cols] dtype
  const float* rstd;   // [rows]
  void* dx;            // [rows, cols] dtype
  void* dweight;       // [cols] dtype; null when it is not wanted
  int64_t rows, cols;
  DType dtype;
};
BNB_KERNEL(rms_norm_backward, RmsNormBackwardArgs)

}  // namespace bnb
