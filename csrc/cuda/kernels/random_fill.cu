// Uniform, normal and integer fills from Philox blocks.
//
// Layout    flat; element i takes word i % 4 of the block offset + i / 4.
// Work      a thread makes two blocks, eight elements, at a time, grid-stride, and keeps no state in between.
// Numerics  the operations of the CPU's kernel in its order: the same bits. Needs -fmad=false.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "kernels/box_muller.h"
#include "kernels/random_fill.h"

namespace bnb::cuda {
namespace {

constexpr int kRun = 8;

__device__ __forceinline__ void words(uint64_t seed, uint64_t block, uint32_t (&word)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; i += 4) {
    const PhiloxBlock b = philox(seed, block + static_cast<uint64_t>(i / 4));
#pragma unroll
    for (int j = 0; j < 4; j++) word[i + j] = b.word[j];
  }
}

// low + u * width, or mean + z * deviation.
template <class T>
__global__ void __launch_bounds__(kMapThreads)
    float_kernel(T* y, int64_t n, uint64_t seed, uint64_t offset, bool normal, float low, float width, bool vectors) {
  for_each_run<kRun>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    uint32_t word[kRun];
    words(seed, offset + static_cast<uint64_t>(i / 4), word);
    float value[kRun];
    if (normal) {
#pragma unroll
      for (int j = 0; j < kRun; j += 2) {
        const float radius = sqrtf(squared_radius(word[j])) * width;
        float cosine, sine;
        turn(word[j + 1] >> 8, cosine, sine);
        value[j] = radius * cosine + low;
        value[j + 1] = radius * sine + low;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kRun; j++)
        value[j] = static_cast<float>(static_cast<int32_t>(word[j] >> 8)) * kUnit * width + low;
    }
    store_floats(y + i, count, whole, value);
  });
}

__global__ void __launch_bounds__(kMapThreads)
    integer_kernel(int32_t* y, int64_t n, uint64_t seed, uint64_t offset, int64_t low, uint64_t width, bool vectors) {
  for_each_run<kRun>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    uint32_t word[kRun];
    words(seed, offset + static_cast<uint64_t>(i / 4), word);
    int32_t value[kRun];
#pragma unroll
    for (int j = 0; j < kRun; j++) value[j] = static_cast<int32_t>(low + static_cast<int64_t>((word[j] * width) >> 32));
    store_run(y + i, count, whole, value);
  });
}

}  // namespace

void random_fill(const RandomFillArgs& a, CudaStream& s) {
  const dim3 grid = map_grid(s, a.n, kRun);
  if (a.distribution == Distribution::integer) {
    auto* y = static_cast<int32_t*>(a.y);
    const int64_t low = static_cast<int64_t>(a.low);
    const uint64_t width = static_cast<uint64_t>(static_cast<int64_t>(a.high) - low);
    return launch(s, integer_kernel, grid, dim3(kMapThreads), 0, y, a.n, a.seed, a.offset, low, width,
                  vectors_fit<int32_t, kRun>(y));
  }
  const bool normal = a.distribution == Distribution::normal;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    auto* y = static_cast<T*>(a.y);
    launch(s, float_kernel<T>, grid, dim3(kMapThreads), 0, y, a.n, a.seed, a.offset, normal, static_cast<float>(a.low),
           static_cast<float>(normal ? a.high : a.high - a.low), vectors_fit<T, kRun>(y));
  });
}

}  // namespace bnb::cuda
