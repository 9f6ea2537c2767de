// Rotary position embedding on half-split pairs, forward and inverse.
//
// Layout    x [batch, length, heads, dim]; a pair is (i, i + pairs), its angle in the row of the token's position.
// Work      a thread turns a run of 16 bytes of the first elements of pairs with their partners, or copies one of those
//           that no pair has, grid-stride. The heads of a token read the same angles from the cache.
// Numerics  float32, rounded once to the dtype of x.
// Needs     nothing. Pairs that are no multiple of a vector, and misaligned views, go element by element.
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
__global__ void __launch_bounds__(kMapThreads) rope_kernel(RopeArgs a, bool vectors, const char* op) {
  constexpr int V = kVector<T>;
  if (!resolve(a.position, op, a.offset)) return;
  const int64_t pairs = a.angles.pairs, turning = ceil_div(pairs, V), runs = turning + ceil_div(a.dim - 2 * pairs, V);
  const int64_t n = a.batch * a.length * a.heads * runs;
  const auto* x = static_cast<const T*>(a.x);
  auto* y = static_cast<T*>(a.y);
  for (int64_t item = global_thread(); item < n; item += global_threads()) {
    const int64_t head = item / runs, run = item - head * runs, token = head / a.heads;
    const int64_t position = a.positions ? a.positions[token] : a.offset + token % a.length;
    const float direction = a.inverse ? -1.0f : 1.0f;
    if (run < turning) {
      if (position < 0 || position >= a.angles.positions) {
        report_out_of_range(a.fault, op, position, a.angles.positions);
        continue;
      }
      const int64_t i = run * V, count = pairs - i, at = head * a.dim + i, row = position * pairs + i;
      turn(x + at, y + at, a.angles.cos + row, a.angles.sin + row, pairs, count, vectors && count >= V, direction);
    } else {
      const int64_t i = 2 * pairs + (run - turning) * V, count = a.dim - i, at = head * a.dim + i;
      T passed[V];
      load_run(x + at, count, vectors && count >= V, passed);
      store_run(y + at, count, vectors && count >= V, passed);
    }
  }
}

}  // namespace

void rope(const RopeArgs& a, CudaStream& s) {
  const int64_t pairs = a.angles.pairs, heads = a.batch * a.length * a.heads;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    const bool vectors = pairs % V == 0 && a.dim % V == 0 && aligned_for(sizeof(T) * V, a.x, a.y) &&
                         vectors_fit<float, V>(a.angles.cos, a.angles.sin);
    const int64_t runs = ceil_div(pairs, V) + ceil_div(a.dim - 2 * pairs, V);
    launch(s, rope_kernel<T>, map_grid(s, heads * runs, 1), dim3(kMapThreads), 0, a, vectors, "rope");
  });
}

}  // namespace bnb::cuda
