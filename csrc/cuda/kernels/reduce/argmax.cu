// Index of the first maximum, or of the first NaN, over the middle axis of [outer, n, inner].
//
// Layout    y is int32.
// Work      reduce.cuh. Reads x once.
// Numerics  value and index are one int64, the value mapped to an integer of the same order in the high half, so that
//           the larger of two is the one wanted, whatever the order of comparisons.
// Needs     0 < n < 2^31.
#include "cuda/kernels/reduce/reduce.cuh"
#include "kernels/reduce.h"

namespace bnb::cuda {
namespace {

struct ArgmaxOp {
  using State = int64_t;
  static constexpr bool kVectors = false;
  int32_t* y;

  static __device__ __forceinline__ int64_t identity() { return INT64_MIN; }
  static __device__ __forceinline__ int64_t join(int64_t a, int64_t b) { return Max{}(a, b); }
  __device__ __forceinline__ float context(int64_t) const { return 0; }
  __device__ __forceinline__ int64_t of(float v, int64_t i, float) const {
    const int32_t bits = static_cast<int32_t>(float_bits(v + 0.0f));  // -0 equals 0
    const int32_t order = v != v ? INT32_MAX : bits < 0 ? bits ^ INT32_MAX : bits;
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(order)) << 32 | ~static_cast<uint32_t>(i));
  }
  __device__ __forceinline__ void put(int64_t line, int64_t best) const {
    y[line] = static_cast<int32_t>(~static_cast<uint32_t>(best));
  }
};

}  // namespace

void argmax(const ArgmaxArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    const ReducePlan plan = plan_reduce<decltype(t)>(s, a.x, a.outer, a.n, a.inner, ArgmaxOp::kVectors);
    void* partials = s.scratch(static_cast<size_t>(plan.partials()) * sizeof(int64_t));
    launch_reduce<ArgmaxOp, decltype(t)>(s, plan, ArgmaxOp{a.y}, a.x, static_cast<int64_t*>(partials));
  });
}

}  // namespace bnb::cuda
