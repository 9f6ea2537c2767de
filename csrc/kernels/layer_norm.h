// y = (x - mean) * rstd * weight + bias per row, rstd = 1 / sqrt(variance + eps), variance over cols.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct LayerNormArgs {
  const void* x;       // [rows, cols] dtype
  const void* weight;  // [cols] dtype, or null for ones
  const void* bias;    // [cols] dtype, or null for zeros
  void* y;             // [rows, cols] dtype
  float* mean;         // [rows]
  float* rstd;         // [rows]
  int64_t rows, cols;
  float eps;
  DType dtype;
};
BNB_KERNEL(layer_norm, LayerNormArgs)

struct LayerNormBackwardArgs {
  const void* dy;      // [rows, cols] dtype
  const void* x;       // [rows, cols] dtype
  const void* weight;  // [cols] dtype, or null for ones
  const float* mean;   // [rows]
  const float* rstd;   // [rows]
  void* dx;            // [rows, cols] dtype
  void* dweight;       // [cols] dtype; null when it is not wanted
  void* dbias;         // [cols] dtype; null when it is not wanted
  int64_t rows, cols;
  DType dtype;
};
BNB_KERNEL(layer_norm_backward, LayerNormBackwardArgs)

}  // namespace bnb
