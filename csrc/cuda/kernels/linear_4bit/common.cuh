// What the 4-bit products share: scales, tables of pairs of codes, where sums go.
#pragma once
#include "cuda/codebooks.cuh"
#include "cuda/kernels/linear_4bit/linear_4bit.h"
#include "cuda/kernels/matmul/output.cuh"
#include "cuda/ptx.cuh"

namespace bnb::cuda {

// A scale as it was loaded: the use comes steps later than the load.
struct RawScale {
  uint32_t bits;  // the float, or the code of a nested scale
  float factor;   // of the code
};

// A weight as kernels see it.
struct WeightView {
  const uint8_t* packed;
  BlockScales scales;
  int32_t shift, nested_shift;  // logarithms of the blocksizes
  QuantType type;

  __device__ __forceinline__ bool nested() const { return scales.nested_absmax != nullptr; }
  __device__ __forceinline__ float scale(int64_t weight) const {
    return scale_of(scales, weight >> shift, nested_shift);
  }
  __device__ __forceinline__ RawScale raw_scale(uint32_t block) const {
    if (!nested()) return {static_cast<const uint32_t*>(scales.absmax)[block], 0.0f};
    return {static_cast<const uint8_t*>(scales.absmax)[block], scales.nested_absmax[block >> nested_shift]};
  }
  // `codes` is scales.nested_code in shared memory.
  __device__ __forceinline__ float scale(RawScale raw, const float* codes, float offset) const {
    return nested() ? codes[raw.bits] * raw.factor + offset : float_from_bits(raw.bits);
  }
  __device__ __forceinline__ float offset() const { return nested() ? scales.offset[0] : 0.0f; }
  // codes: [256]
  __device__ __forceinline__ void load_nested_code(float* codes) const {
    if (!nested()) return;
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
      codes[i] = scales.nested_code[i];
  }
};
inline WeightView view_of(const Weight4Bit& w) {
  return {w.packed, w.scales, shift_of(w.blocksize), w.scales.nested_absmax ? shift_of(w.scales.nested_blocksize) : 0,
          w.type};
}

// Where sums go: bias and residual added in float32, one rounding.
struct ProductOut {
  void* y;           // [m, n] dtype
  const void* bias;  // [n] bias_dtype, or null
  int64_t n;
  DType dtype, bias_dtype;
  const void* residual = nullptr;  // [m, n] dtype

  __device__ __forceinline__ void store(int64_t row, int64_t col, float sum) const {
    if (bias) sum += load_float(bias, col, bias_dtype);
    if (residual) sum += load_float(residual, row * n + col, dtype);
    store_float(y, row * n + col, dtype, sum);
  }
};

// What a byte of two codes stands for, a copy for every lane: 256 rows, so that byte b of lane l is at
// (b << 8 | 4 l), or half of that for the narrow table. A lane meets no bank of another.
template <class T, bool Wide>
struct HalfPairs {
  static constexpr uint32_t kStride = Wide ? 256 : 128;
  static constexpr int kBytes = 256 * kStride;

  // All threads of the block; before the barrier that ends it.
  static __device__ void load(unsigned char* table, QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = static_cast<int>(threadIdx.x); i < 256 * kWarp; i += static_cast<int>(blockDim.x)) {
      const int byte = i / kWarp;
      const uint32_t first = narrow<T>(values[byte >> 4]).bits, second = narrow<T>(values[byte & 15]).bits;
      *reinterpret_cast<uint32_t*>(table + byte * kStride + i % kWarp * 4) = first | second << 16;
    }
  }
  static __device__ __forceinline__ uint32_t lane_bits(int lane) {
    return static_cast<uint32_t>(lane) * (Wide ? 4 : 8);
  }
  // The pair of byte i of q: the even k in the low half.
  static __device__ __forceinline__ uint32_t at(const unsigned char* table, uint32_t q, uint32_t i,
                                                uint32_t lane_bits) {
    const uint32_t offset = prmt(q, lane_bits, 0x5504 | i << 4);
    return *reinterpret_cast<const uint32_t*>(table + (Wide ? offset : offset >> 1));
  }
};

// The same in float32 with a copy for every lane of half a warp, which is what one pass of 8-byte loads covers.
template <bool Wide>
struct FloatPairs {
  static constexpr int kStride = Wide ? 256 : 128, kBytes = 256 * kStride;

  static __device__ void load(unsigned char* table, QuantType type) {
    const float* values = device_values_4bit(type);
    for (int i = static_cast<int>(threadIdx.x); i < 256 * 16; i += static_cast<int>(blockDim.x)) {
      const int byte = i / 16;
      store_vec(reinterpret_cast<float*>(table + byte * kStride + i % 16 * 8),
                Vec<float, 2>{{values[byte >> 4], values[byte & 15]}});
    }
  }
  static __device__ __forceinline__ uint32_t lane_bits(int lane) {
    return static_cast<uint32_t>(lane % 16) * (Wide ? 8 : 16);
  }
  static __device__ __forceinline__ Vec<float, 2> at(const unsigned char* table, uint32_t q, uint32_t i,
                                                     uint32_t lane_bits) {
    const uint32_t offset = prmt(q, lane_bits, 0x5504 | i << 4);
    return load_vec<2>(reinterpret_cast<const float*>(table + (Wide ? offset : offset >> 1)));
  }
};

// Whether this block is the last of `parties` that come here; the others' writes are visible to it then. All threads.
__device__ __forceinline__ bool last_of(int32_t* counter, int32_t parties) {
  BNB_SHARED(int32_t, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == parties - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last != 0;
}

// A float that another block of this launch wrote.
__device__ __forceinline__ float load_fresh(const float* from) { return *static_cast<const volatile float*>(from); }

// How the blocks of small_m share a product, and where its sums meet.
struct Sharing {
  int64_t m, outputs;  // of the result
  ProductOut out;
  float* partials;  // [splits, m, outputs], or null for one split
  int32_t* counters;
  int32_t sum_warps, splits, groups;
};

// Adds up a group of outputs from `first` on: over the warps that share it, in order, and over the splits, in order.
// deposit(e, to): this warp's sums for rows 8e .. 8e + 7, to[8][Width + 4]. All threads of the block.
template <int Width, int Warps, int Eights, class Deposit>
__device__ __forceinline__ void finish_group(const Sharing& p, int group, float* exchange, const Deposit& deposit) {
  constexpr int kPitch = Width + 4, kPart = 8 * kPitch;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, split = static_cast<int>(blockIdx.x) % p.splits;
  const int width = Width * (Warps / p.sum_warps);
  const int64_t first = int64_t{group} * width;
#pragma unroll
  for (int e = 0; e < Eights; e++) {
    if (8 * e >= p.m) break;
    __syncthreads();
    deposit(e, exchange + warp * kPart);
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 8 * width; i += Warps * kWarp) {
      const int row = 8 * e + i / width, col = i % width;
      if (row >= p.m || first + col >= p.outputs) continue;
      const float* from = exchange + (col / Width * p.sum_warps) * kPart + i / width * kPitch + col % Width;
      float sum = 0;
#pragma unroll 1
      for (int w = 0; w < p.sum_warps; w++) sum += from[w * kPart];
      if (p.splits == 1)
        p.out.store(row, first + col, sum);
      else
        p.partials[(split * p.m + row) * p.outputs + first + col] = sum;
    }
  }
  if (p.splits == 1 || !last_of(p.counters + group, p.splits)) return;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < p.m * width; i += Warps * kWarp) {
    const int64_t row = i / width, col = first + i % width;
    if (col >= p.outputs) continue;
    float sum = 0;
#pragma unroll 4
    for (int j = 0; j < p.splits; j++) sum += load_fresh(p.partials + (j * p.m + row) * p.outputs + col);
    p.out.store(row, col, sum);
  }
}

// Part `part` of `parts` of n.
__device__ __forceinline__ int part_of(int n, int part, int parts) {
  return static_cast<int>(int64_t{n} * part / parts);
}

// Rows of x[m, k], elements [from, from + count), to shared memory; count is a multiple of 8. Elements from `end` on
// are zeros.
template <class T>
__device__ __forceinline__ void copy_rows_in(T* to, int pitch, const T* x, int64_t m, int64_t k, int64_t from,
                                             int count, int64_t end) {
  const int pieces = count / 8;
  for (int i = static_cast<int>(threadIdx.x); i < pieces * static_cast<int>(m); i += static_cast<int>(blockDim.x)) {
    const int row = i / pieces, piece = i % pieces * 8;
    const bool valid = from + piece < end;
    cp_async16(to + row * pitch + piece, x + (valid ? row * k + from + piece : 0), valid);
  }
}

}  // namespace bnb::cuda
