// A run of elements of any float dtype, read as float32 by loads of 16 bytes.
#pragma once
#include "cuda/convert.cuh"
#include "cuda/kernel.cuh"

namespace bnb::cuda {

// v[i] = from[i]; `from` is aligned to 16 bytes, N a multiple of 8.
template <class T, int N>
__device__ __forceinline__ void load_run(const T* from, float (&v)[N]) {
  constexpr int kVec = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kVec) {
    const Vec<T, kVec> part = load_vec<kVec>(from + i);
#pragma unroll
    for (int j = 0; j < kVec; j++) v[i + j] = widen(part.v[j]);
  }
}

}  // namespace bnb::cuda
