// Limits on both sides, and the gradient that passes between them.
//
// Layout    flat arrays of one size.
// Work      a thread takes runs of 16 bytes, grid-stride: one read and one write of each element.
// Numerics  comparisons in float32; a limit is rounded to the dtype of x where it is written.
// Needs     low <= high; tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "kernels/clamp.h"

namespace bnb::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    clamp_kernel(const T* x, T* y, int64_t n, float low, float high, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float v[V];
    load_floats(x + i, count, whole, v);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = v[j] < low ? low : v[j] > high ? high : v[j];
    store_floats(y + i, count, whole, v);
  });
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    clamp_backward_kernel(const T* dy, const T* x, T* dx, int64_t n, float low, float high, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float d[V], v[V];
    load_floats(dy + i, count, whole, d);
    load_floats(x + i, count, whole, v);
#pragma unroll
    for (int j = 0; j < V; j++) d[j] = v[j] >= low && v[j] <= high ? d[j] : 0.0f;
    store_floats(dx + i, count, whole, d);
  });
}

}  // namespace

void clamp(const ClampArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    launch(s, clamp_kernel<T>, map_grid(s, a.n, kVector<T>), dim3(kMapThreads), 0, x, y, a.n, a.low, a.high,
           vectors_fit<T, kVector<T>>(x, y));
  });
}

void clamp_backward(const ClampBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x);
    auto* dx = static_cast<T*>(a.dx);
    launch(s, clamp_backward_kernel<T>, map_grid(s, a.n, kVector<T>), dim3(kMapThreads), 0, dy, x, dx, a.n, a.low,
           a.high, vectors_fit<T, kVector<T>>(dy, x, dx));
  });
}

}  // namespace bnb::cuda
