// What the blockwise quantizers share: how blocks lie over threads, and the largest magnitude of a block.
//
// A thread has 8 neighbouring elements, a thread block a tile of 4096: one quantization block or several whole ones,
// each a group of blocksize / 8 threads. A group is part of a warp, or several warps, which meet in shared memory.
// Whole tiles come first, in a loop without a branch for anything else. Blocks whose scale is unusual are encoded once
// more, and the end of a tensor or addresses that vectors cannot use come last: both by a function out of line.
#pragma once
#include "cuda/codebooks.cuh"
#include "cuda/map.cuh"
#include "kernels/plan/residency.h"

namespace bnb::cuda {

constexpr int kQuantizeRun = 8;
constexpr int kQuantizeThreads = 512;
constexpr int kQuantizeTileShift = 12, kQuantizeTile = 1 << kQuantizeTileShift;
static_assert(kQuantizeTile == kQuantizeRun * kQuantizeThreads);

constexpr int kQuantizeRegisters = 40;  // of a thread, from compute capability 8.0 on

// Blocks of threads for n elements, with an encoder of so many bytes: as many as stay on the card, because each first
// fills its table.
inline dim3 quantize_grid(const CudaStream& s, int64_t n, size_t encoder) {
  const auto shared = static_cast<int64_t>(encoder + 2 * kQuantizeThreads / kWarp * sizeof(uint32_t));
  const int64_t tiles = ceil_div(n, kQuantizeTile);
  const int64_t most = int64_t{s.gpu.sms} * resident_blocks(s.gpu, kQuantizeThreads, kQuantizeRegisters, shared);
  return dim3(static_cast<unsigned>(tiles < most ? tiles : most));
}

// Calls f with the lanes of a group as a constant, 0 where it is several warps. No group has fewer than `Fewest`.
template <int Fewest, class F>
void visit_group(int64_t blocksize, const F& f) {
  if constexpr (Fewest > kWarp) {
    f(std::integral_constant<int, 0>{});
  } else if (blocksize == Fewest * kQuantizeRun) {
    f(std::integral_constant<int, Fewest>{});
  } else {
    visit_group<2 * Fewest>(blocksize, f);
  }
}

__device__ __forceinline__ float largest_magnitude(const float (&v)[kQuantizeRun]) {
  float top = v[0];
#pragma unroll
  for (int i = 1; i < kQuantizeRun; i++) top = max_magnitude(top, v[i]);
  return top;
}

// The largest magnitude over a group of `threads`, as a bit pattern; every thread gets it. All of the block call it.
// Lanes is the number of threads, or 0 for several warps, which use two sets of partial by turns, so that one barrier
// is enough: `turn` is 0 or 1.
template <int Lanes>
__device__ __forceinline__ uint32_t group_absmax(float top, int threads, int& turn) {
  if constexpr (Lanes == kWarp) {
    return warp_max(float_bits(top));
  } else if constexpr (Lanes > 0) {
    return float_bits(warp_reduce<Lanes>(top, [](float a, float b) { return max_magnitude(a, b); }));
  } else {
    constexpr int kWarps = kQuantizeThreads / kWarp;
    BNB_SHARED(uint32_t[2][kWarps], partial);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = threads / kWarp;
    const uint32_t mine = warp_max(float_bits(top));
    if (lane == 0) partial[turn][warp] = mine;
    __syncthreads();
    const uint32_t all = warp_max(partial[turn][(warp & -warps) | (lane & (warps - 1))]);
    turn ^= 1;
    return all;
  }
}

// How the elements of a block become normalized ones.
struct BlockNorm {
  uint32_t top;
  float absmax;  // what is stored: 0, or NaN for a block with an element that is not finite

  __device__ __forceinline__ explicit BlockNorm(uint32_t top_bits)
      : top(top_bits), absmax(float_from_bits(top < kInfinityBits ? top : kNanBits)) {}

  // Whether x * reciprocal(absmax) is what the rule says.
  __device__ __forceinline__ bool plain() const { return top - kSmallestNormalBits < kLargeBits - kSmallestNormalBits; }
  // The rule: x * (1 / absmax), or x / absmax for a subnormal scale, whose reciprocal could overflow; 0 for all of a
  // block without a scale.
  __device__ __forceinline__ float normalized(float x) const {
    if (top == 0 || top >= kInfinityBits) return 0.0f;
    return top < kSmallestNormalBits ? x / absmax : x * (1.0f / absmax);
  }
};

}  // namespace bnb::cuda
