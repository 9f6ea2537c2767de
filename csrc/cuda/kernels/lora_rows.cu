// Rows of several adapters: down to the rank of each, and up again onto what the base made of them.
//
// Layout    x [rows, inputs], A [adapters, rank, inputs], B [adapters, rank, outputs]: both are read along their rows.
// Work      down: a warp a row and 4 ranks, whose products with it share its loads; the sums go to scratch memory.
//           Up: a thread a run of columns of a row. Which adapter a row has is found on the device, so that a graph
//           may be replayed with other segments.
// Numerics  float32, rounded once into z; each lane adds its elements in order, then a fixed tree. A row's sums do not
//           depend on other rows.
// Needs     nothing; runs of 16 bytes where sizes and addresses allow them, else single elements.
#include "cuda/map.cuh"
#include "kernels/lora_rows.h"

namespace bnb::cuda {
namespace {

constexpr int kRanks = 4;

template <int V, class T>
__device__ __forceinline__ void load_all(const T* from, float (&to)[V]) {
  if constexpr (V > 1) {
    load_whole_floats<V>(from, to);
  } else {
    to[0] = widen(from[0]);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kMapThreads) down_kernel(LoraRowsArgs a, float* h) {
  const int lane = threadIdx.x % kWarp;
  const int64_t groups = ceil_div(a.rank, kRanks);
  for (int64_t item = global_thread() / kWarp; item < a.rows * groups; item += global_threads() / kWarp) {
    const int64_t t = item / groups, j = kRanks * (item - t * groups), adapter = adapter_of(a, t);
    if (adapter < 0) continue;
    const T* x = static_cast<const T*>(a.x) + t * a.inputs;
    const T* w = static_cast<const T*>(a.a) + (adapter * a.rank + j) * a.inputs;
    const int64_t most = a.rank - 1 - j;
    float sums[kRanks] = {};
#pragma unroll 1
    for (int64_t i = static_cast<int64_t>(lane) * V; i < a.inputs; i += kWarp * V) {
      float v[V];
      load_all<V>(x + i, v);
#pragma unroll
      for (int k = 0; k < kRanks; k++) {
        float u[V];
        // Behind the last rank stands the last one again.
        load_all<V>(w + (k < most ? k : most) * a.inputs + i, u);
#pragma unroll
        for (int e = 0; e < V; e++) sums[k] = fmaf(v[e], u[e], sums[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < kRanks; k++) {
      const float sum = warp_sum(sums[k]);
      if (lane == 0 && k <= most) h[t * a.rank + j + k] = sum;
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kMapThreads) up_kernel(LoraRowsArgs a, const float* h) {
  const int64_t runs = a.outputs / V;
  for (int64_t item = global_thread(); item < a.rows * runs; item += global_threads()) {
    const int64_t t = item / runs, at = (item - t * runs) * V, adapter = adapter_of(a, t);
    float z[V];
    load_all<V>(static_cast<const T*>(a.y) + t * a.outputs + at, z);
    const int64_t ranks = adapter < 0 ? 0 : a.rank;
    const T* b = static_cast<const T*>(a.b) + adapter * ranks * a.outputs + at;
    const float* own = h + t * a.rank;
#pragma unroll 2
    for (int64_t j = 0; j < ranks; j++) {
      float u[V];
      load_all<V>(b + j * a.outputs, u);
#pragma unroll
      for (int e = 0; e < V; e++) z[e] = fmaf(own[j], u[e], z[e]);
    }
    store_floats(static_cast<T*>(a.z) + t * a.outputs + at, V, V > 1, z);
  }
}

template <class T, int V>
void launch_down(const LoraRowsArgs& a, CudaStream& s, float* h) {
  const int64_t items = a.rows * ceil_div(a.rank, kRanks);
  launch(s, down_kernel<T, V>, stride_grid(s, items, kMapThreads / kWarp), dim3(kMapThreads), 0, a, h);
}

template <class T, int V>
void launch_up(const LoraRowsArgs& a, CudaStream& s, const float* h) {
  launch(s, up_kernel<T, V>, stride_grid(s, a.rows * (a.outputs / V), kMapThreads), dim3(kMapThreads), 0, a, h);
}

}  // namespace

void lora_rows(const LoraRowsArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    const auto *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
    const auto *down = static_cast<const T*>(a.a), *up = static_cast<const T*>(a.b);
    auto* h = static_cast<float*>(s.scratch(static_cast<size_t>(a.rows * a.rank + 1) * sizeof(float)));
    if (a.inputs % V == 0 && vectors_fit<T, V>(x, down)) {
      launch_down<T, V>(a, s, h);
    } else {
      launch_down<T, 1>(a, s, h);
    }
    if (a.outputs % V == 0 && vectors_fit<T, V>(y, up, static_cast<const T*>(a.z))) {
      launch_up<T, V>(a, s, h);
    } else {
      launch_up<T, 1>(a, s, h);
    }
  });
}

}  // namespace bnb::cuda
