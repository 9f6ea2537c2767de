// What the blockwise quantizers share: how blocks lie over threads, and the largest magnitude of a block.
//
// A thread has 8 neighbouring elements, a thread block 4096: one quantization block or several whole ones, each a
// group of blocksize / 8 threads. A group is part of a warp, or several warps, which meet in shared memory.
#pragma once
#include "cuda/codebooks.cuh"
#include "cuda/map.cuh"

namespace bnb::cuda {

constexpr int kQuantizeRun = 8;
constexpr int kQuantizeThreads = 512;
constexpr int64_t kQuantizeTile = int64_t{kQuantizeRun} * kQuantizeThreads;

// Blocks of threads for n elements: a few for each multiprocessor, because each first fills a table.
inline dim3 quantize_grid(const CudaStream& s, int64_t n) {
  const int64_t tiles = ceil_div(n, kQuantizeTile), most = int64_t{s.gpu.sms} * 4;
  return dim3(static_cast<unsigned>(tiles < most ? tiles : most));
}

// The largest magnitude over a group of `threads` (a power of two), as a bit pattern; every thread gets it. Uses two
// sets of `partial` by turns, so that one barrier is enough: `turn` counts the calls.
__device__ __forceinline__ uint32_t group_absmax(const float (&v)[kQuantizeRun], int threads,
                                                 uint32_t (&partial)[2][kQuantizeThreads / kWarp], int turn) {
  uint32_t top = 0;
#pragma unroll
  for (int i = 0; i < kQuantizeRun; i++) top = Max{}(top, float_bits(v[i]) & kMagnitudeMask);
  for (int offset = (threads < kWarp ? threads : kWarp) / 2; offset > 0; offset /= 2)
    top = Max{}(top, __shfl_xor_sync(kFullMask, top, offset));
  if (threads > kWarp) {
    const int warp = threadIdx.x / kWarp, warps = threads / kWarp;
    if (threadIdx.x % kWarp == 0) partial[turn % 2][warp] = top;
    __syncthreads();
    for (int w = warp & -warps, last = w + warps; w < last; w++) top = Max{}(top, partial[turn % 2][w]);
  }
  return top;
}

// How the elements of a block become normalized ones.
struct BlockNorm {
  float absmax;   // what is stored: 0, or NaN for a block with an element that is not finite
  float inverse;  // 1 / absmax, rounded correctly
  bool coded;     // false: all codes are that of 0
  bool tiny;      // divide by absmax instead: the reciprocal of a subnormal number could overflow

  __device__ __forceinline__ explicit BlockNorm(uint32_t top)
      : absmax(float_from_bits(top < kInfinityBits ? top : kNanBits)),
        inverse(1.0f / absmax),
        coded(top != 0 && top < kInfinityBits),
        tiny(top < kSmallestNormalBits) {}

  // Makes NaN of all elements of a block that is not coded.
  __device__ __forceinline__ void normalize(float (&v)[kQuantizeRun]) const {
    if (tiny) {
#pragma unroll
      for (int i = 0; i < kQuantizeRun; i++) v[i] = v[i] / absmax;
    } else {
#pragma unroll
      for (int i = 0; i < kQuantizeRun; i++) v[i] = v[i] * inverse;
    }
  }
};

}  // namespace bnb::cuda
