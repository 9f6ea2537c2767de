// Gradients of sum, mean, maximum and minimum over the middle axis of [outer, n, inner].
//
// Layout    dx is written flat, 16 bytes per thread at a time.
// Work      sum and mean: one kernel repeats dy. Maximum and minimum: reduce.cuh counts the elements equal to y, then
//           the kernel gives each of them its share; reads x twice.
// Numerics  float32; counts are integers.
// Needs     nothing; any size, also zero.
#include "cuda/kernels/reduce/reduce.cuh"
#include "kernels/reduce.h"

namespace bnb::cuda {
namespace {

// How many elements equal the extreme of their line.
template <class T>
struct CountOp {
  using State = int64_t;
  static constexpr bool kVectors = false;
  const T* y;
  int64_t* counts;

  static __device__ __forceinline__ int64_t identity() { return 0; }
  static __device__ __forceinline__ int64_t join(int64_t a, int64_t b) { return a + b; }
  __device__ __forceinline__ float context(int64_t line) const { return widen(y[line]); }
  __device__ __forceinline__ int64_t of(float v, int64_t, float extreme) const { return v == extreme; }
  __device__ __forceinline__ void put(int64_t line, int64_t count) const { counts[line] = count; }
};

// a / b, by the much shorter division of 32 bits where that holds both.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  return (a | b) >> 32 == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
}

// dx = what value(line, element) says, where line is that of the element.
template <class T, class F>
__device__ __forceinline__ void fill_lines(const ReduceBackwardArgs& a, const F& value) {
  constexpr int kVec = 16 / sizeof(T);
  T* dx = static_cast<T*>(a.dx);
  const int64_t total = a.outer * a.n * a.inner, run = a.inner == 1 ? a.n : a.inner;
  const bool aligned = reinterpret_cast<uintptr_t>(dx) % 16 == 0;
  for (int64_t i = global_thread() * kVec; i < total; i += global_threads() * kVec) {
    const int64_t above = quotient(i, run), at = i - above * run;
    Vec<T, kVec> out;
    if (at + kVec <= run) {
      // Within one run: the line stays, or goes up by one.
      const int64_t line = a.inner == 1 ? above : quotient(above, a.n) * a.inner + at;
      const int step = a.inner == 1 ? 0 : 1;
#pragma unroll
      for (int j = 0; j < kVec; j++) out.v[j] = narrow<T>(value(line + j * step, i + j));
    } else {
#pragma unroll 1
      for (int j = 0; j < kVec; j++) {
        if (i + j >= total) break;
        const int64_t row = quotient(i + j, run);
        const int64_t line = a.inner == 1 ? row : quotient(row, a.n) * a.inner + (i + j - row * run);
        dx[i + j] = narrow<T>(value(line, i + j));
      }
      continue;
    }
    if (aligned) {
      store_vec(dx + i, out);
    } else {
#pragma unroll
      for (int j = 0; j < kVec; j++) dx[i + j] = out.v[j];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads) spread(ReduceBackwardArgs a, float scale) {
  const T* dy = static_cast<const T*>(a.dy);
  fill_lines<T>(a, [&](int64_t line, int64_t) { return widen(dy[line]) * scale; });
}

template <class T>
__global__ void __launch_bounds__(kReduceThreads) spread_to_equal(ReduceBackwardArgs a, const int64_t* counts) {
  const T *dy = static_cast<const T*>(a.dy), *x = static_cast<const T*>(a.x), *y = static_cast<const T*>(a.y);
  fill_lines<T>(a, [&](int64_t line, int64_t i) {
    return widen(x[i]) == widen(y[line]) ? widen(dy[line]) / static_cast<float>(counts[line]) : 0.0f;
  });
}

template <class T>
void backward(const ReduceBackwardArgs& a, CudaStream& s) {
  const dim3 grid = stride_grid(s, a.outer * a.n * a.inner, kReduceThreads * 16 / static_cast<int64_t>(sizeof(T)));
  if (a.op == ReduceOp::sum || a.op == ReduceOp::mean) {
    const float scale = a.op == ReduceOp::mean ? 1.0f / static_cast<float>(a.n) : 1.0f;
    return launch(s, spread<T>, grid, dim3(kReduceThreads), 0, a, scale);
  }
  using Op = CountOp<T>;
  const ReducePlan plan = plan_reduce<T>(s, a.x, a.outer, a.n, a.inner, Op::kVectors);
  auto* counts =
      static_cast<int64_t*>(s.scratch(static_cast<size_t>(plan.lines() + plan.partials()) * sizeof(int64_t)));
  launch_reduce<Op, T>(s, plan, Op{static_cast<const T*>(a.y), counts}, a.x, counts + plan.lines());
  launch(s, spread_to_equal<T>, grid, dim3(kReduceThreads), 0, a, counts);
}

}  // namespace

void reduce_backward(const ReduceBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a, s); });
}

}  // namespace bnb::cuda
