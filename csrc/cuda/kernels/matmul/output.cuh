// How sums leave a product: bias and the old contents added in float32, then one rounding to the type of c.
#pragma once
#include "cuda/kernel.cuh"
#include "kernels/matmul.h"

namespace bnb::cuda {

// One load or store of a type that is only known at run time: the branch is the same for a whole launch.
__device__ __forceinline__ float load_float(const void* p, int64_t i, DType dtype) {
  if (dtype == DType::float32) return static_cast<const float*>(p)[i];
  if (dtype == DType::float16) return widen(static_cast<const f16*>(p)[i]);
  return widen(static_cast<const bf16*>(p)[i]);
}
__device__ __forceinline__ void store_float(void* p, int64_t i, DType dtype, float x) {
  if (dtype == DType::float32)
    static_cast<float*>(p)[i] = x;
  else if (dtype == DType::float16)
    static_cast<f16*>(p)[i] = narrow<f16>(x);
  else
    static_cast<bf16*>(p)[i] = narrow<bf16>(x);
}

struct Output {
  void* c;           // [batch, m, n] dtype
  const void* bias;  // [n] dtype, or null
  int64_t m, n;
  DType dtype;
  bool accumulate;
  bool vectors;   // rows of c start at multiples of four elements' bytes
  int64_t row_c;  // elements from one row of c to the next

  template <class T, int N>
  __device__ __forceinline__ void store(int64_t batch, int64_t row, int64_t col, const float (&sums)[N]) const {
    T* to = static_cast<T*>(c) + (batch * m + row) * row_c + col;
    const T* b = static_cast<const T*>(bias) + col;
    if (vectors && col + N <= n) {
      Vec<T, N> y{}, old{}, term{};
      if (bias) term = load_vec<N>(b);
      if (accumulate) old = load_vec<N>(to);
#pragma unroll
      for (int i = 0; i < N; i++) {
        float x = sums[i];
        if (bias) x += widen(term.v[i]);
        if (accumulate) x += widen(old.v[i]);
        y.v[i] = narrow<T>(x);
      }
      store_vec(to, y);
      return;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (col + i >= n) break;
      float x = sums[i];
      if (bias) x += widen(b[i]);
      if (accumulate) x += widen(to[i]);
      to[i] = narrow<T>(x);
    }
  }

  // N neighbours of a row, col a multiple of N; what lies outside of c is dropped.
  template <int N>
  __device__ __forceinline__ void put(int64_t batch, int64_t row, int64_t col, const float (&sums)[N]) const {
    if (row >= m || col >= n) return;
    if (dtype == DType::float32)
      store<float>(batch, row, col, sums);
    else if (dtype == DType::float16)
      store<f16>(batch, row, col, sums);
    else
      store<bf16>(batch, row, col, sums);
  }
};

inline Output output_of(const MatmulArgs& x) {
  return {x.c,
          x.bias,
          x.m,
          x.n,
          x.dtype_c,
          x.accumulate,
          x.n % 4 == 0 && x.row_c % 4 == 0 && aligned_for(x.dtype_c == DType::float32 ? 16 : 8, x.c, x.bias),
          x.row_c ? x.row_c : x.n};
}

// A grid of so many blocks; one that is too large for a grid is refused by launch().
inline dim3 grid_of(int64_t blocks) { return dim3(blocks < UINT32_MAX ? static_cast<unsigned>(blocks) : UINT32_MAX); }

// Which tile of c a block owns. Neighbouring blocks share rows of b: eight tiles down, then one across.
struct TilePlace {
  int64_t batch, row, col;  // in tiles
};
__device__ __forceinline__ TilePlace tile_place(int64_t block, int64_t tiles_m, int64_t tiles_n) {
  constexpr int64_t kDown = 8;
  const int64_t batch = block / (tiles_m * tiles_n), at = block % (tiles_m * tiles_n);
  const int64_t band = at / (kDown * tiles_n), within = at % (kDown * tiles_n);
  const int64_t left = tiles_m - band * kDown, down = left < kDown ? left : kDown;
  return {batch, band * kDown + within % down, within / down};
}

}  // namespace bnb::cuda
