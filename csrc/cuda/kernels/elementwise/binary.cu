// y = f(a, b) with broadcasting, and the gradients of both operands at the shape of y.
//
// Layout    operands are contiguous; a broadcast operand stands still along the axes of its *_repeats mask.
// Work      a thread takes runs of V elements of y, grid-stride. Along the innermost axis an operand is a vector or
//           one number; the axes outside it cost a division each, once a run. V is 1 where the innermost of several
//           axes is no multiple of a vector.
// Numerics  float32 with one rounding at the store; division is correctly rounded. int32 wraps.
// Needs     nothing: tails and misaligned views go element by element.
#include <type_traits>

#include "cuda/map.cuh"
#include "kernels/elementwise.h"

namespace bnb::cuda {
namespace {

// Where the elements of y from i on find their operands.
struct Place {
  int64_t a, b;
};
__device__ __forceinline__ Place locate(const BroadcastAxes& axes, int64_t i) {
  Place at = {0, 0};
  int64_t a_size = 1, b_size = 1;
  // Unrolled, because parameters that are indexed by a variable are copied to the stack first.
#pragma unroll
  for (int k = kBroadcastAxes - 1; k >= 0; k--) {
    if (k >= axes.ndim) continue;
    const int64_t dim = axes.dims[k], rest = k > 0 ? i / dim : 0, index = i - rest * dim;
    i = rest;
    if (!(axes.a_repeats >> k & 1)) {
      at.a += index * a_size;
      a_size *= dim;
    }
    if (!(axes.b_repeats >> k & 1)) {
      at.b += index * b_size;
      b_size *= dim;
    }
  }
  return at;
}

// A NaN on either side gives NaN.
__device__ __forceinline__ float larger(float a, float b) { return b == b ? (a < b ? b : a) : b; }
__device__ __forceinline__ float smaller(float a, float b) { return b == b ? (b < a ? b : a) : b; }

template <int V, class C, class F>
__device__ __forceinline__ void each(C (&a)[V], const C (&b)[V], F f) {
#pragma unroll
  for (int i = 0; i < V; i++) a[i] = f(a[i], b[i]);
}

template <int V>
__device__ __forceinline__ void apply(BinaryOp op, float (&x)[V], const float (&y)[V]) {
  switch (op) {
    case BinaryOp::add: return each(x, y, [](float a, float b) { return a + b; });
    case BinaryOp::sub: return each(x, y, [](float a, float b) { return a - b; });
    case BinaryOp::mul: return each(x, y, [](float a, float b) { return a * b; });
    case BinaryOp::div: return each(x, y, [](float a, float b) { return a / b; });
    case BinaryOp::maximum: return each(x, y, [](float a, float b) { return larger(a, b); });
    case BinaryOp::minimum: return each(x, y, [](float a, float b) { return smaller(a, b); });
  }
}
// Unsigned, because a wrapping signed sum is undefined.
template <int V>
__device__ __forceinline__ void apply(BinaryOp op, int32_t (&x)[V], const int32_t (&y)[V]) {
  const auto wrapping = [&](auto f) {
    each(x, y, [f](int32_t a, int32_t b) {
      return static_cast<int32_t>(f(static_cast<uint32_t>(a), static_cast<uint32_t>(b)));
    });
  };
  switch (op) {
    case BinaryOp::add: return wrapping([](uint32_t a, uint32_t b) { return a + b; });
    case BinaryOp::sub: return wrapping([](uint32_t a, uint32_t b) { return a - b; });
    case BinaryOp::mul: return wrapping([](uint32_t a, uint32_t b) { return a * b; });
    case BinaryOp::maximum: return each(x, y, [](int32_t a, int32_t b) { return a > b ? a : b; });
    case BinaryOp::minimum: return each(x, y, [](int32_t a, int32_t b) { return a < b ? a : b; });
    case BinaryOp::div: return;  // refused by the op
  }
}

// An operand in the type it is computed in: a run of it, or one number V times. Null stands for `number`.
template <int V, class T>
__device__ __forceinline__ void operand(const T* p, int64_t at, bool is_one, float number, int64_t count, bool whole,
                                        float (&v)[V]) {
  if (p && !is_one) return load_floats(p + at, count, whole, v);
  const float one = p ? widen(p[at]) : number;
#pragma unroll
  for (int i = 0; i < V; i++) v[i] = one;
}
template <int V>
__device__ __forceinline__ void operand(const int32_t* p, int64_t at, bool is_one, int32_t number, int64_t count,
                                        bool whole, int32_t (&v)[V]) {
  if (p && !is_one) return load_run(p + at, count, whole, v);
  const int32_t one = p ? p[at] : number;
#pragma unroll
  for (int i = 0; i < V; i++) v[i] = one;
}
template <int V, class T>
__device__ __forceinline__ void store_result(T* to, int64_t count, bool whole, const float (&v)[V]) {
  store_floats(to, count, whole, v);
}
template <int V>
__device__ __forceinline__ void store_result(int32_t* to, int64_t count, bool whole, const int32_t (&v)[V]) {
  store_run(to, count, whole, v);
}

// C is the type of arithmetic: float, or int32_t.
template <class T, class C, int V>
__global__ void __launch_bounds__(kMapThreads)
    binary_kernel(const T* a, const T* b, T* y, int64_t n, C number, BroadcastAxes axes, BinaryOp op, bool vectors) {
  const int last = axes.ndim - 1;
  const bool a_is_one = axes.a_repeats >> last & 1, b_is_one = axes.b_repeats >> last & 1;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    const Place at = locate(axes, i);
    C va[V], vb[V];
    operand(a, at.a, a_is_one, number, count, whole, va);
    operand(b, at.b, b_is_one, number, count, whole, vb);
    apply(op, va, vb);
    store_result(y + i, count, whole, va);
  });
}

// --- gradients -------------------------------------------------------------------------------------------------------

struct Grads {
  float da, db;
};

// The part of dy that the side with value `mine` gets as the winner: all of it, or half at a tie.
__device__ __forceinline__ float share(float dy, float mine, float other, bool wins) {
  return mine == other ? dy * 0.5f : wins ? dy : 0.0f;
}

__device__ __forceinline__ Grads gradients(BinaryOp op, float dy, float a, float b) {
  switch (op) {
    case BinaryOp::mul: return {dy * b, dy * a};
    case BinaryOp::div: {
      const float da = dy / b;
      return {da, -(da * a / b)};
    }
    case BinaryOp::maximum: return {share(dy, a, b, b < a), share(dy, b, a, a < b)};
    case BinaryOp::minimum: return {share(dy, a, b, a < b), share(dy, b, a, b < a)};
    default: return {0, 0};  // add and sub need no kernel
  }
}

// A gradient may be wider than the operands, or unwanted.
template <int V, class T>
__device__ __forceinline__ void store_gradient(void* p, bool wide, int64_t i, int64_t count, bool whole,
                                               const float (&v)[V]) {
  if (!p) return;
  if (wide) {
    store_floats(static_cast<float*>(p) + i, count, whole, v);
  } else {
    store_floats(static_cast<T*>(p) + i, count, whole, v);
  }
}

struct Outputs {
  void *da, *db;
  bool a_wide, b_wide;  // float32
};

template <class T, int V>
__global__ void __launch_bounds__(kMapThreads)
    binary_backward_kernel(const T* dy, const T* a, const T* b, Outputs out, int64_t n, float number,
                           BroadcastAxes axes, BinaryOp op, bool vectors) {
  const int last = axes.ndim - 1;
  const bool a_is_one = axes.a_repeats >> last & 1, b_is_one = axes.b_repeats >> last & 1;
  for_each_run<V>(n, vectors, [&](int64_t i, int64_t count, bool whole) {
    const Place at = locate(axes, i);
    float d[V], va[V], vb[V];
    load_floats(dy + i, count, whole, d);
    operand(a, at.a, a_is_one, number, count, whole, va);
    operand(b, at.b, b_is_one, number, count, whole, vb);
#pragma unroll
    for (int j = 0; j < V; j++) {
      const Grads g = gradients(op, d[j], va[j], vb[j]);
      va[j] = g.da;
      vb[j] = g.db;
    }
    store_gradient<V, T>(out.da, out.a_wide, i, count, whole, va);
    store_gradient<V, T>(out.db, out.b_wide, i, count, whole, vb);
  });
}

// Whether a run of V never leaves the innermost axis, but at the end of the tensor.
bool runs_stay_inside(const BroadcastAxes& axes, int V) { return axes.ndim == 1 || axes.dims[axes.ndim - 1] % V == 0; }

// Calls f with a constant: the length of the runs.
template <int V, class F>
void with_run_length(const BroadcastAxes& axes, const F& f) {
  if (runs_stay_inside(axes, V)) {
    f(std::integral_constant<int, V>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

template <class T, class C>
void launch_binary(const BinaryArgs& x, CudaStream& s) {
  const auto *a = static_cast<const T*>(x.a), *b = static_cast<const T*>(x.b);
  auto* y = static_cast<T*>(x.y);
  BroadcastAxes axes = x.axes;
  if (!b) axes = {.dims = {x.n}, .ndim = 1, .a_repeats = 0, .b_repeats = 0};
  with_run_length<kVector<T>>(axes, [&](auto length) {
    constexpr int V = decltype(length)::value;
    launch(s, binary_kernel<T, C, V>, map_grid(s, x.n, V), dim3(kMapThreads), 0, a, b, y, x.n, static_cast<C>(x.number),
           axes, x.op, vectors_fit<T, V>(a, b, y));
  });
}

}  // namespace

void binary(const BinaryArgs& a, CudaStream& s) {
  if (a.dtype == DType::int32) return launch_binary<int32_t, int32_t>(a, s);
  visit_float(a.dtype, [&](auto t) { launch_binary<decltype(t), float>(a, s); });
}

void binary_backward(const BinaryBackwardArgs& x, CudaStream& s) {
  const Outputs out = {x.da, x.db, x.a_dtype == DType::float32, x.b_dtype == DType::float32};
  visit_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    const auto *dy = static_cast<const T*>(x.dy), *a = static_cast<const T*>(x.a), *b = static_cast<const T*>(x.b);
    with_run_length<kVector<T>>(x.axes, [&](auto length) {
      constexpr int V = decltype(length)::value;
      // The outputs as if they were float32: at least what either type needs.
      const bool vectors = vectors_fit<T, V>(dy, a, b) && aligned_for(sizeof(float) * kPiece<float, V>, x.da, x.db);
      launch(s, binary_backward_kernel<T, V>, map_grid(s, x.n, V), dim3(kMapThreads), 0, dy, a, b, out, x.n,
             static_cast<float>(x.number), x.axes, x.op, vectors);
    });
  });
}

}  // namespace bnb::cuda
