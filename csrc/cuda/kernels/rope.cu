// Rotary position embedding on half-split pairs, forward and inverse.
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
    float c[V], s[V], first[V], second[V];
    load_floats(cos + row, count, whole, c);
    load_floats(sin + row, count, whole, s);
    load_floats(x + at, count, whole, first);
    load_floats(x + at + half, count, whole, second);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const float a = first[j], b = second[j], sine = s[j] * direction;
      first[j] = a * c[j] - b * sine;
      second[j] = b * c[j] + a * sine;
    }
    store_floats(y + at, count, whole, first);
    store_floats(y + at + half, count, whole, second);
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

}  // namespace bnb::cuda
