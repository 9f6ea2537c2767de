// Rotary position embedding on half-split pairs, forward and inverse, alone or on the way into a cache.
//
// Layout    x [batch, length, heads, dim]; a pair is (i, i + dim/2), its angle in row offset + t of the tables.
// Work      a thread turns a run of 16 bytes of a head's first half with its partners, grid-stride. The heads of a
//           position read the same angles from the cache.
// Numerics  float32, rounded once to the dtype of x.
// Needs     dim even. Halves that are no multiple of a vector, and misaligned views, go element by element.
#include "cuda/map.cuh"
#include "cuda/position.cuh"
#include "kernels/rope.h"

namespace bnb::cuda {
namespace {

// A run of pairs: `count` of them, x and y at their first halves.
template <class T>
__device__ __forceinline__ void turn(const T* x, T* y, const float* cos, const float* sin, int64_t half, int64_t count,
                                     bool whole, float direction) {
  constexpr int V = kVector<T>;
  float c[V], s[V], first[V], second[V];
  load_floats(cos, count, whole, c);
  load_floats(sin, count, whole, s);
  load_floats(x, count, whole, first);
  load_floats(x + half, count, whole, second);
#pragma unroll
  for (int j = 0; j < V; j++) {
    const float a = first[j], b = second[j], sine = s[j] * direction;
    first[j] = a * c[j] - b * sine;
    second[j] = b * c[j] + a * sine;
  }
  store_floats(y, count, whole, first);
  store_floats(y + half, count, whole, second);
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    rope_kernel(const T* x, const float* cos, const float* sin, T* y, int64_t positions, int64_t length, int64_t heads,
                int64_t half, int64_t offset, Position position, float direction, bool vectors, const char* op) {
  constexpr int V = kVector<T>;
  if (!resolve(position, op, offset)) return;
  const int64_t runs = ceil_div(half, V), n = positions * heads * runs;
  for (int64_t item = global_thread(); item < n; item += global_threads()) {
    const int64_t head = item / runs, i = (item - head * runs) * V, count = half - i;
    const int64_t row = (offset + head / heads % length) * half + i, at = head * 2 * half + i;
    const bool whole = vectors && count >= V;
    turn(x + at, y + at, cos + row, sin + row, half, count, whole, direction);
  }
}

// The heads of a position are those of q, then of k, then of v, which is copied.
template <class T>
__global__ void __launch_bounds__(kMapThreads) rope_append_kernel(RopeAppendArgs a, bool vectors, const char* op) {
  constexpr int V = kVector<T>;
  if (!resolve(a.position, op, a.offset)) return;
  const int64_t half = a.dim / 2, runs = ceil_div(half, V), all_heads = a.heads + 2 * a.kv_heads;
  const int64_t n = a.batch * a.length * all_heads * runs;
  for (int64_t item = global_thread(); item < n; item += global_threads()) {
    const int64_t head = item / runs, i = (item - head * runs) * V, count = half - i;
    const int64_t p = head / all_heads, batch = p / a.length, at = a.offset + p - batch * a.length;
    const int64_t h = head - p * all_heads, row = at * half + i;
    const bool whole = vectors && count >= V;
    if (h < a.heads) {
      const int64_t place = (p * a.heads + h) * a.dim + i;
      turn(static_cast<const T*>(a.q) + place, static_cast<T*>(a.y) + place, a.cos + row, a.sin + row, half, count,
           whole, 1.0f);
      continue;
    }
    const bool is_key = h < a.heads + a.kv_heads;
    const int64_t kv = h - a.heads - (is_key ? 0 : a.kv_heads);
    const int64_t from = (p * a.kv_heads + kv) * a.dim + i;
    const int64_t to = ((batch * a.capacity + at) * a.kv_heads + kv) * a.dim + i;
    if (is_key) {
      turn(static_cast<const T*>(a.k) + from, static_cast<T*>(a.keys) + to, a.cos + row, a.sin + row, half, count,
           whole, 1.0f);
      continue;
    }
#pragma unroll
    for (int part = 0; part < 2; part++) {
      T v[V];
      load_run(static_cast<const T*>(a.v) + from + part * half, count, whole, v);
      store_run(static_cast<T*>(a.values) + to + part * half, count, whole, v);
    }
  }
}

}  // namespace

void rope(const RopeArgs& a, CudaStream& s) {
  const int64_t half = a.dim / 2, positions = a.batch * a.length;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    const auto* x = static_cast<const T*>(a.x);
    auto* y = static_cast<T*>(a.y);
    const bool vectors = half % V == 0 && vectors_fit<T, V>(x, y) && vectors_fit<float, V>(a.cos, a.sin);
    launch(s, rope_kernel<T>, map_grid(s, positions * a.heads * ceil_div(half, V), 1), dim3(kMapThreads), 0, x, a.cos,
           a.sin, y, positions, a.length, a.heads, half, a.offset, a.position, a.inverse ? -1.0f : 1.0f, vectors,
           "rope");
  });
}

void rope_append(const RopeAppendArgs& a, CudaStream& s) {
  const int64_t half = a.dim / 2, heads = a.batch * a.length * (a.heads + 2 * a.kv_heads);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    const bool vectors = half % V == 0 && vectors_fit<float, V>(a.cos, a.sin) &&
                         aligned_for(sizeof(T) * V, a.q, a.k, a.v, a.y, a.keys, a.values);
    launch(s, rope_append_kernel<T>, map_grid(s, heads * ceil_div(half, V), 1), dim3(kMapThreads), 0, a, vectors,
           kernels::rope_append.name);
  });
}

}  // namespace bnb::cuda
