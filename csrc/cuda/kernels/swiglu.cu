// y = silu(gate) * up and its gradient.
//
// Layout    flat arrays of one size.
// Work      a thread takes runs of 16 bytes, grid-stride: one read and one write of each element.
// Numerics  float32, rounded once. With s = sigmoid(gate): dup = dy * gate * s and
//           dgate = dy * up * s * (1 + gate * (1 - s)).
// Needs     nothing: tails and misaligned views go element by element.
#include "cuda/map.cuh"
#include "cuda/math.cuh"
#include "kernels/swiglu.h"

namespace bnb::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    swiglu_kernel(const T* gate, const T* up, T* y, int64_t n, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float g[V], u[V];
    load_floats(gate + i, count, whole, g);
    load_floats(up + i, count, whole, u);
#pragma unroll
    for (int j = 0; j < V; j++) u[j] = g[j] * sigmoid(g[j]) * u[j];
    store_floats(y + i, count, whole, u);
  });
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    swiglu_backward_kernel(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n, bool vectors) {
  constexpr int V = kVector<T>;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    float d[V], g[V], u[V];
    load_floats(dy + i, count, whole, d);
    load_floats(gate + i, count, whole, g);
    load_floats(up + i, count, whole, u);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float s = sigmoid(g[j]), of_up = d[j] * g[j] * s;
      g[j] = d[j] * u[j] * s * fmaf(g[j], 1.0f - s, 1.0f);
      u[j] = of_up;
    }
    store_floats(dgate + i, count, whole, g);
    store_floats(dup + i, count, whole, u);
  });
}

}  // namespace

void swiglu(const SwigluArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *gate = static_cast<const T*>(a.gate), *up = static_cast<const T*>(a.up);
    auto* y = static_cast<T*>(a.y);
    launch(s, swiglu_kernel<T>, map_grid(s, a.size, kVector<T>), dim3(kMapThreads), 0, gate, up, y, a.size,
           vectors_fit<T, kVector<T>>(gate, up, y));
  });
}

void swiglu_backward(const SwigluBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *dy = static_cast<const T*>(a.dy), *gate = static_cast<const T*>(a.gate),
               *up = static_cast<const T*>(a.up);
    auto *dgate = static_cast<T*>(a.dgate), *dup = static_cast<T*>(a.dup);
    launch(s, swiglu_backward_kernel<T>, map_grid(s, a.size, kVector<T>), dim3(kMapThreads), 0, dy, gate, up, dgate,
           dup, a.size, vectors_fit<T, kVector<T>>(dy, gate, up, dgate, dup));
  });
}

}  // namespace bnb::cuda
