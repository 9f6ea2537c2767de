// Queries turned, and keys and values on their way into pages.
//
// Layout    q, k, v [tokens, heads, dim]; a token's place in the pages is its slot, with one row of dim elements a
// head. Work      a warp takes a head of a token: of q, of k or of v. It reads the head once more for the codes of int8
// pages,
//           whose scale needs all of it.
// Numerics  turned in float32 and rounded once to the dtype of the pages; int8 codes are rint(x * (127 / absmax)) of a
//           head, with the scale absmax / 127, which is NaN where the head has one.
// Needs     nothing; positions and slots out of range are reported, and write nothing.
#include "cuda/map.cuh"
#include "kernels/kv_append.h"

namespace bnb::cuda {
namespace {

constexpr float kSmallest = 1e-30f;  // below it, 127 / absmax could be infinite: codes are 0

// Element d of a head, turned by a row of the tables where there are pairs.
template <class T>
__device__ __forceinline__ float turned(const T* x, int64_t d, int64_t pairs, const float* cos, const float* sin) {
  const float own = widen(x[d]);
  if (d < pairs) return own * cos[d] - widen(x[d + pairs]) * sin[d];
  if (d < 2 * pairs) return own * cos[d - pairs] + widen(x[d - pairs]) * sin[d - pairs];
  return own;
}

__device__ __forceinline__ void put(void* pages, DType dtype, int64_t at, float x) {
  if (dtype == DType::float32) {
    static_cast<float*>(pages)[at] = x;
  } else if (dtype == DType::float16) {
    static_cast<f16*>(pages)[at] = narrow<f16>(x);
  } else {
    static_cast<bf16*>(pages)[at] = narrow<bf16>(x);
  }
}

template <class T>
__global__ void __launch_bounds__(kMapThreads) kv_append_kernel(KvAppendArgs a, const char* op) {
  const KvPages& layer = a.layer;
  const int lane = threadIdx.x % kWarp;
  const int64_t dim = layer.dim, all_heads = a.heads + 2 * layer.kv_heads;
  for (int64_t item = global_thread() / kWarp; item < a.tokens * all_heads; item += global_threads() / kWarp) {
    const int64_t t = item / all_heads, h = item - t * all_heads;
    const bool is_query = h < a.heads, is_value = h >= a.heads + layer.kv_heads;
    int64_t pairs = is_value ? 0 : a.angles.pairs;
    const int64_t position = pairs > 0 ? a.positions[t] : 0;
    if (pairs > 0 && (position < 0 || position >= a.angles.positions)) {
      if (lane == 0) report_out_of_range(a.fault, op, position, a.angles.positions);
      pairs = 0;
    }
    const float *cos = a.angles.cos + position * pairs, *sin = a.angles.sin + position * pairs;
    if (is_query) {
      const int64_t at = (t * a.heads + h) * dim;
#pragma unroll 1
      for (int64_t d = lane; d < dim; d += kWarp)
        static_cast<T*>(a.y)[at + d] = narrow<T>(turned(static_cast<const T*>(a.q) + at, d, pairs, cos, sin));
      continue;
    }
    const int64_t kv_head = h - a.heads - (is_value ? layer.kv_heads : 0), slot = a.slots[t];
    if (slot >= layer.slots() && lane == 0) report_out_of_range(a.fault, op, slot, layer.slots());
    if (slot < 0 || slot >= layer.slots()) continue;
    const T* x = static_cast<const T*>(is_value ? a.v : a.k) + (t * layer.kv_heads + kv_head) * dim;
    void* pages = is_value ? layer.values : layer.keys;
    const int64_t row = layer.row_of(slot, kv_head);
    if (layer.dtype != DType::int8) {
#pragma unroll 1
      for (int64_t d = lane; d < dim; d += kWarp) put(pages, layer.dtype, row * dim + d, turned(x, d, pairs, cos, sin));
      continue;
    }
    float absmax = 0, poison = 0;
#pragma unroll 1
    for (int64_t d = lane; d < dim; d += kWarp) {
      const float v = fabsf(turned(x, d, pairs, cos, sin));
      absmax = fmaxf(absmax, v);
      poison += v * 0.0f;  // NaN where v is NaN or infinite
    }
    absmax = warp_reduce(absmax, Max{}) + warp_sum(poison);
    const float factor = absmax > kSmallest ? 127.0f / absmax : 0.0f;
#pragma unroll 1
    for (int64_t d = lane; d < dim; d += kWarp) {
      const int code = factor > 0 ? __float2int_rn(turned(x, d, pairs, cos, sin) * factor) : 0;
      static_cast<int8_t*>(pages)[row * dim + d] = static_cast<int8_t>(code);
    }
    if (lane == 0) (is_value ? layer.value_scales : layer.key_scales)[row] = absmax / 127.0f;
  }
}

}  // namespace

void kv_append(const KvAppendArgs& a, CudaStream& s) {
  const int64_t items = a.tokens * (a.heads + 2 * a.layer.kv_heads);
  visit_float(a.dtype, [&](auto t) {
    launch(s, kv_append_kernel<decltype(t)>, stride_grid(s, items, kMapThreads / kWarp), kMapThreads, 0, a,
           kernels::kv_append.name);
  });
}

}  // namespace bnb::cuda
