// Sum, mean, maximum and minimum over the middle axis of [outer, n, inner].
//
// Layout    x in its dtype, y in any float dtype.
// Work      reduce.cuh. Reads x once.
// Numerics  float32 until the one rounding to y. A minimum is the maximum of the negated values, exactly.
// Needs     n > 0 for max and min.
#include "cuda/kernels/reduce/reduce.cuh"
#include "kernels/reduce.h"

namespace bnb::cuda {
namespace {

__device__ __forceinline__ void put(void* y, DType dtype, int64_t i, float v) {
  if (dtype == DType::float32) {
    static_cast<float*>(y)[i] = v;
  } else if (dtype == DType::float16) {
    static_cast<f16*>(y)[i] = narrow<f16>(v);
  } else {
    static_cast<bf16*>(y)[i] = narrow<bf16>(v);
  }
}

struct SumOp {
  using State = float;
  static constexpr bool kVectors = true;
  void* y;
  DType dtype;
  bool mean;
  float n;

  static __device__ __forceinline__ float identity() { return 0; }
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
  __device__ __forceinline__ float context(int64_t) const { return 0; }
  __device__ __forceinline__ float of(float v, int64_t, float) const { return v; }
  __device__ __forceinline__ void put(int64_t line, float v) const { cuda::put(y, dtype, line, mean ? v / n : v); }
};

struct MaxOp {
  using State = float;
  static constexpr bool kVectors = true;
  void* y;
  DType dtype;
  float sign;  // -1 for the minimum

  static __device__ __forceinline__ float identity() { return -HUGE_VALF; }
  static __device__ __forceinline__ float join(float a, float b) { return Max{}(a, b); }
  __device__ __forceinline__ float context(int64_t) const { return 0; }
  __device__ __forceinline__ float of(float v, int64_t, float) const { return v * sign; }
  __device__ __forceinline__ void put(int64_t line, float v) const { cuda::put(y, dtype, line, v * sign); }
};

template <class Op>
void reduce_with(const ReduceArgs& a, CudaStream& s, const Op& op) {
  visit_float(a.dtype, [&](auto t) {
    const ReducePlan plan = plan_reduce<decltype(t)>(s, a.x, a.outer, a.n, a.inner, true);
    void* partials = s.scratch(static_cast<size_t>(plan.partials()) * sizeof(float));
    launch_reduce<Op, decltype(t)>(s, plan, op, a.x, static_cast<float*>(partials));
  });
}

}  // namespace

void reduce(const ReduceArgs& a, CudaStream& s) {
  if (a.op == ReduceOp::sum || a.op == ReduceOp::mean) {
    reduce_with(a, s, SumOp{a.y, a.y_dtype, a.op == ReduceOp::mean, static_cast<float>(a.n)});
  } else {
    reduce_with(a, s, MaxOp{a.y, a.y_dtype, a.op == ReduceOp::max ? 1.0f : -1.0f});
  }
}

}  // namespace bnb::cuda
