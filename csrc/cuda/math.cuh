// The logistic function, for the kernels that gate with it.
#pragma once
#include "cuda/kernel.cuh"

namespace bnb::cuda {

// a / b within 2 ulp for b in [2^-126, 2^126]: a reciprocal and a product, where the rounded division has a slow path.
__device__ __forceinline__ float quick_divide(float a, float b) {
#if defined(__CUDACC__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return quick_divide(x < 0 ? e : 1.0f, 1.0f + e);
}

}  // namespace bnb::cuda
