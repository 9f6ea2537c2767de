// The smooth relu and its gradient.
//
// Layout    flat arrays of one size.
// Work      a thread takes runs of 16 bytes, grid-stride: one read and one write of each element.
// Numerics  float32 with one rounding at the store. log(1 + exp(t)) is max(t, 0) + log1p(exp(-|t|)): nothing overflows,
//           and a far negative t keeps its digits.
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "cuda/math.cuh"
#include "kernels/softplus.h"

namespace bnb::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    softplus_kernel(const T* x, T* y, int64_t n, float beta, float threshold, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float v[V];
    load_floats(x + i, count, whole, v);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float t = v[j] * beta;
      // A NaN fails both comparisons, and is what log1p gives.
      const float smooth = ((t > 0 ? t : 0.0f) + log1pf(expf(-fabsf(t)))) / beta;
      v[j] = t > threshold ? v[j] : smooth;
    }
    store_floats(y + i, count, whole, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    softplus_backward_kernel(const T* dy, const T* x, T* dx, int64_t n, float beta, float threshold, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float d[V], v[V];
    load_floats(dy + i, count, whole, d);
    load_floats(x + i, count, whole, v);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float t = v[j] * beta;
      d[j] = t > threshold ? d[j] : d[j] * sigmoid(t);
    }
    store_floats(dx + i, count, whole, d);
  });
}

}  // namespace

void softplus(const SoftplusArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    launch(s, softplus_kernel<T>, map_grid(s, a.n, kVector<T>), dim3(kMapThreads), 0, x, y, a.n, a.beta, a.threshold,
           vectors_fit<T, kVector<T>>(x, y));
  });
}

void softplus_backward(const SoftplusBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
    auto* dx = static_cast<T*>(a.dx);
    launch(s, softplus_backward_kernel<T>, map_grid(s, a.n, kVector<T>), dim3(kMapThreads), 0, dy, x, dx, a.n, a.beta,
           a.threshold, vectors_fit<T, kVector<T>>(dy, x, dx));
  });
}

}  // namespace bnb::cuda
