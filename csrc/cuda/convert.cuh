// Conversions of 16-bit floats by the GPU's instructions: equal to those of core/float16.h but for the payload of a
// NaN.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

#include "core/float16.h"

namespace bnb::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return to_float(x); }
__device__ __forceinline__ float widen(f16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return to_float(x);
#endif
}

template <class T>
__device__ __forceinline__ T narrow(float x) {
  return from_float<T>(x);
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
#if defined(__CUDA_ARCH__)
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  return from_float<f16>(x);
#endif
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
#else
  return from_float<bf16>(x);
#endif
}

// The two of a word, the first in its low half.
template <class T>
__device__ __forceinline__ void widen_pair(uint32_t pair, float& low, float& high) {
  if constexpr (__is_same(T, bf16)) {
    low = float_from_bits(pair << 16);
    high = float_from_bits(pair & 0xffff0000u);
  } else {
    low = widen(T{static_cast<uint16_t>(pair)});
    high = widen(T{static_cast<uint16_t>(pair >> 16)});
  }
}

// Two at once, which is one instruction from compute capability 8.0 on.
template <class T>
__device__ __forceinline__ void narrow_pair(float a, float b, T& x, T& y) {
  x = narrow<T>(a);
  y = narrow<T>(b);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void narrow_pair<f16>(float a, float b, f16& x, f16& y) {
  asm("{\n .reg .b32 p;\n cvt.rn.f16x2.f32 p, %3, %2;\n mov.b32 {%0, %1}, p;\n}"
      : "=h"(x.bits), "=h"(y.bits)
      : "f"(a), "f"(b));
}
template <>
__device__ __forceinline__ void narrow_pair<bf16>(float a, float b, bf16& x, bf16& y) {
  asm("{\n .reg .b32 p;\n cvt.rn.bf16x2.f32 p, %3, %2;\n mov.b32 {%0, %1}, p;\n}"
      : "=h"(x.bits), "=h"(y.bits)
      : "f"(a), "f"(b));
}
#endif

}  // namespace bnb::cuda
