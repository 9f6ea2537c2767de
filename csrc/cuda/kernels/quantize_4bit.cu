// Blockwise 4-bit quantization and its inverse.
//
// Layout    Element 2k is the high nibble of byte k. Blocks are powers of two from 32 to 4096, so a block starts on a
//           byte, and 32 elements from a multiple of 32 on have one scale.
// Work      Quantizing: cuda/quantize_block.cuh; a thread reads 8 elements at once and writes 4 bytes. Dequantizing: a
//           warp does 1024 elements, in steps of one 16-byte store per lane, next to each other, from 2 or 4 packed
//           bytes. Each lane computes the scale of 32 elements, nested or not, and passes it to those that need it.
// Numerics  Bit exact: x = a * (1 / absmax) with IEEE operations (a / absmax for a subnormal scale), then the search of
//           Encoder4bit. The inverse is table * scale in float32, rounded once.
// Needs     Vectors where packed is aligned to 4 bytes and the floats to 16; otherwise single elements.
#include "cuda/quantize_block.cuh"
#include "kernels/quantize_4bit.h"

namespace bnb::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_4bit_kernel(const T* x, uint8_t* packed, float* absmax, int64_t n, int block_shift, QuantType type,
                         uint32_t zero_codes, bool vectors) {
  BNB_SHARED(Encoder4bit, encoder);
  BNB_SHARED(uint32_t[2][kQuantizeThreads / kWarp], partial);
  encoder.load(type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int group = (1 << block_shift) / kQuantizeRun;
  int turn = 0;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kQuantizeTile; tile < n;
       tile += static_cast<int64_t>(gridDim.x) * kQuantizeTile) {
    const int64_t first = tile + threadIdx.x * kQuantizeRun, left = n - first;
    const bool whole = vectors && left >= kQuantizeRun;
    float v[kQuantizeRun];
    load_floats(x + first, left, whole, v);
    const BlockNorm norm(group_absmax(v, group, partial, turn++));
    norm.normalize(v);
    // Nibbles from the highest down: those of byte 3, then byte 2, and so on, each byte's first element on top.
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < kQuantizeRun; i++) word = word * 16 + encoder.code(v[(kQuantizeRun - 1 - i) ^ 1], lane);
    if (!norm.coded) word = zero_codes;
    if (left <= 0) continue;
    if (threadIdx.x % group == 0) absmax[first >> block_shift] = norm.absmax;
    uint8_t* const to = packed + first / 2;
    if (whole) {
      store_vec(reinterpret_cast<uint32_t*>(to), Vec<uint32_t, 1>{word});
    } else {
      for (int i = 0; i < kQuantizeRun / 2; i++)
        if (2 * i < left) to[i] = static_cast<uint8_t>(word >> (8 * i));
    }
  }
}

constexpr int kDequantizeThreads = 256;
constexpr int kWarpTile = 1024;
constexpr int kScaled = 32;  // elements whose scale one lane computes

// W packed codes, W / 2 bytes. Bytes beyond the end read as zeros.
template <int W>
__device__ __forceinline__ uint32_t load_codes(const uint8_t* packed, int left, bool vectors) {
  if (vectors && left >= W) {
    if constexpr (W == 8) return load_vec<1>(reinterpret_cast<const uint32_t*>(packed)).v[0];
    if constexpr (W == 4) return load_vec<1>(reinterpret_cast<const uint16_t*>(packed)).v[0];
  }
  uint32_t word = 0;
  for (int i = 0; i < W / 2; i++)
    if (2 * i < left) word |= static_cast<uint32_t>(packed[i]) << (8 * i);
  return word;
}

template <class T>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize_4bit_kernel(const uint8_t* packed, BlockScales scales, T* y, int64_t n, int block_shift,
                           int nested_shift, QuantType type, bool vectors) {
  constexpr int W = kVector<T>;
  constexpr int kSteps = kScaled / W;
  BNB_SHARED(Values4bitTable, table);
  table.load(type);
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  for (int64_t tile = global_thread() / kWarp * kWarpTile; tile < n; tile += global_threads() / kWarp * kWarpTile) {
    const int left = n - tile < kWarpTile ? static_cast<int>(n - tile) : kWarpTile;
    const uint8_t* const from = packed + tile / 2;
    uint32_t words[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int first = (s * kWarp + lane) * W;
      words[s] = load_codes<W>(from + first / 2, left - first, vectors);
    }
    const int mine = lane * kScaled;
    const float scale = mine < left ? scale_of(scales, (tile + mine) >> block_shift, nested_shift) : 0.0f;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int first = (s * kWarp + lane) * W;
      const float theirs = __shfl_sync(kFullMask, scale, first / kScaled);
      float v[W];
#pragma unroll
      for (int i = 0; i < W; i++) v[i] = table.at(words[s] >> (4 * (i ^ 1)) & 15, lane) * theirs;
      store_floats(y + tile + first, left - first, vectors && left - first >= W, v);
    }
  }
}

}  // namespace

void quantize_4bit(const Quantize4BitArgs& a, CudaStream& s) {
  const uint32_t zero_codes = 0x11111111u * kRanks4bit[static_cast<int>(a.type)].zero;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(a.x);
    launch(s, quantize_4bit_kernel<T>, quantize_grid(s, a.n), dim3(kQuantizeThreads), 0, x, a.packed, a.absmax, a.n,
           shift_of(a.blocksize), a.type, zero_codes, aligned_for(16, x) && aligned_for(4, a.packed));
  });
}

void dequantize_4bit(const Dequantize4BitArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    T* y = static_cast<T*>(a.y);
    const dim3 grid = stride_grid(s, a.n, int64_t{kDequantizeThreads} / kWarp * kWarpTile);
    launch(s, dequantize_4bit_kernel<T>, grid, dim3(kDequantizeThreads), 0, a.packed, a.scales, y, a.n,
           shift_of(a.blocksize), shift_of(a.scales.nested_blocksize), a.type,
           aligned_for(16, y) && aligned_for(4, a.packed));
  });
}

}  // namespace bnb::cuda
