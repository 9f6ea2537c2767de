// float16 cannot hold table * scale where a scale lies beyond its largest number. Kernels that round that product look
// for such a scale first, on the device; if there is one, the exact kernel runs after them and replaces what they
// wrote.
#pragma once
#include "cuda/kernel.cuh"
#include "cuda/kernels/linear_4bit/linear_4bit.h"

namespace bnb::cuda {

constexpr float kLargestHalf = 65504.0f;
static_assert(kScaleFlags == 2 * kWarp);

// Whether a launch that was given these flags has to do anything; the same for all of its threads.
__device__ __forceinline__ bool wanted(const int32_t* flags) {
  if (!flags) return true;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return __any_sync(kFullMask, (flags[lane] | flags[kWarp + lane]) != 0);
}

// Scratch of a product that may need a repair: flags, and sums of split tiles.
struct SplitScratch {
  int32_t* flags = nullptr;
  float* sums = nullptr;

  SplitScratch(CudaStream& s, bool repairs, int64_t count) {
    if (!repairs && count == 0) return;
    flags =
        static_cast<int32_t*>(s.scratch(kScaleFlags * sizeof(int32_t) + static_cast<size_t>(count) * sizeof(float)));
    sums = reinterpret_cast<float*>(flags + kScaleFlags);
  }
};

// Queues the repair of dx.
inline void repair_backward(const Linear4BitBackwardArgs& a, int32_t* flags, CudaStream& s) {
  check_scales(a.w, a.n * a.k, flags, s);
  linear_4bit_backward_simt(a, flags, s);
}

}  // namespace bnb::cuda
