// Dropout with a mask that is recomputed instead of stored.
//
// Layout    flat; element i takes word i % 4 of the block offset + i / 4.
// Work      a thread takes runs of eight elements, two Philox blocks, grid-stride.
// Numerics  one product in float32; a dropped element is 0 even where x is infinite or NaN. The masks are the CPU's.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "kernels/dropout.h"

namespace bnb::cuda {
namespace {

constexpr int kRun = 8;

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    dropout_kernel(const T* x, T* y, int64_t n, uint64_t seed, uint64_t offset, uint32_t least, float scale,
                   bool vectors) {
  for_each_run<kRun>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float v[kRun];
    load_floats(x + i, count, whole, v);
#pragma unroll
    for (int j = 0; j < kRun; j += 4) {
      const PhiloxBlock block = philox(seed, offset + static_cast<uint64_t>((i + j) / 4));
#pragma unroll
      for (int k = 0; k < 4; k++) v[j + k] = block.word[k] >= least && scale > 0 ? v[j + k] * scale : 0.0f;
    }
    store_floats(y + i, count, whole, v);
  });
}

}  // namespace

void dropout(const DropoutArgs& a, CudaStream& s) {
  // With p = 1 the scale is 0, so that the one word at the saturated threshold does not matter.
  const uint32_t least = a.threshold > 0xffffffffu ? 0xffffffffu : static_cast<uint32_t>(a.threshold);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    launch(s, dropout_kernel<T>, map_grid(s, a.n, kRun), dim3(kMapThreads), 0, x, y, a.n, a.seed, a.offset, least,
           a.scale, vectors_fit<T, kRun>(x, y));
  });
}

}  // namespace bnb::cuda
