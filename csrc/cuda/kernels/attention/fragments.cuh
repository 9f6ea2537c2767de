// Tiles of 16-bit rows in shared memory and what the matrix units read from them.
#pragma once
#include "cuda/kernels/attention/heads.cuh"
#include "cuda/ptx.cuh"

namespace bnb::cuda {

// Heads whose results take half of a thread's registers: less of what they do is unrolled.
template <int kDim>
constexpr bool kIsWide = kDim > 128;

// Rows of kDim elements. Pieces of 16 bytes are permuted so that eight rows of the same piece meet no bank twice.
template <class T, int kDim>
struct HalfTile {
  T* data;
  static constexpr int kPieces = kDim / 8;
  static_assert(kPieces % 8 == 0 && sizeof(T) == 2);
  static __device__ __forceinline__ const T* data_of(const void* rows) { return static_cast<const T*>(rows); }

  __device__ __forceinline__ T* piece(int row, int index) const {
    // Multiples of 64 elements become constants in the instructions; else each piece's address takes a register.
    if constexpr (kIsWide<kDim>) return data + row * kDim + ((index ^ row) & 7) * 8 + (index & ~7) * 8;
    return data + row * kDim + (index ^ (row & 7)) * 8;
  }

  // A row from global memory by the `kWidth` threads that call with index 0 .. kWidth - 1; without one, zeros.
  template <int kWidth>
  __device__ __forceinline__ void copy_row(int row, const T* from, bool exists, int dim, int index) const {
#pragma unroll
    for (int p = index; p < kPieces; p += kWidth) {
      const bool valid = exists && p * 8 < dim;
      cp_async16(piece(row, p), valid ? from + p * 8 : from, valid);
    }
  }

  // Operand a: 16 rows from row0, terms k .. k + 15 along the row.
  __device__ __forceinline__ void a(uint32_t (&r)[4], int row0, int k) const {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x4(r, piece(row0 + lane % 16, k / 8 + lane / 16));
  }
  // Operand b for columns that are rows row0 .. + 15 of the tile, terms along the row: {r0, r1} and {r2, r3}.
  __device__ __forceinline__ void b(uint32_t (&r)[4], int row0, int k) const {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x4(r, piece(row0 + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
  }
  // Operand b for columns n .. n + 15 along the row, terms are rows k .. k + 15.
  __device__ __forceinline__ void b_across(uint32_t (&r)[4], int n, int k) const {
    const int lane = threadIdx.x % kWarp;
    ldmatrix_x4<true>(r, piece(k + lane % 16, n / 8 + lane / 16));
  }
};

template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(narrow<T>(low).bits) | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}

// Two products that share operand a: d0 += a {b0, b1}, d1 += a {b2, b3}.
template <class T>
__device__ __forceinline__ void mma_pair(float (&d0)[4], float (&d1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
  const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  mma_m16n8k16<T>(d0, a, first);
  mma_m16n8k16<T>(d1, a, second);
}

// Over the four lanes that hold a row of an accumulator.
template <class F>
__device__ __forceinline__ float quad_reduce(float x, F f) {
  x = f(x, __shfl_xor_sync(kFullMask, x, 1));
  return f(x, __shfl_xor_sync(kFullMask, x, 2));
}

// Copies `kRows` keys from j0 on, those below `last`, by all `kThreads` threads.
template <int kRows, int kThreads, class T, int kDim>
__device__ __forceinline__ void copy_keys(const HalfTile<T, kDim>& tile, const void* from, const AttentionArgs& a,
                                          const Head& h, int64_t j0, int64_t last) {
  constexpr int kWidth = HalfTile<T, kDim>::kPieces;
  constexpr int kStep = kThreads / kWidth, kTimes = kRows / kStep;
  static_assert(kTimes * kStep == kRows);
  const int index = threadIdx.x % kWidth, first = threadIdx.x / kWidth;
  const int present = static_cast<int>(min(last - j0, int64_t{kRows}));
  // From key to key by one addition: a position has two 64-bit products.
  const int64_t stride = a.kv_heads * a.dim * kStep;
  int64_t at = h.key_at(a, j0 + first);
#pragma unroll(kIsWide <kDim> ? 2 : kTimes)
  for (int i = 0; i < kTimes; i++, at += stride) {
    const int row = first + i * kStep;
    const bool exists = row < present;
    tile.template copy_row<kWidth>(row, static_cast<const T*>(from) + (exists ? at : 0), exists,
                                   static_cast<int>(a.dim), index);
  }
}
template <int kRows, int kThreads, class T, int kDim>
__device__ __forceinline__ void copy_queries(const HalfTile<T, kDim>& tile, const void* from, const AttentionArgs& a,
                                             const Head& h, int64_t first, int64_t rows) {
  constexpr int kWidth = HalfTile<T, kDim>::kPieces;
  const int index = threadIdx.x % kWidth;
  for (int row = threadIdx.x / kWidth; row < kRows; row += kThreads / kWidth) {
    const bool exists = first + row < rows;
    tile.template copy_row<kWidth>(row, static_cast<const T*>(from) + (exists ? h.query_at(a, first + row) * a.dim : 0),
                                   exists, static_cast<int>(a.dim), index);
  }
}

}  // namespace bnb::cuda
