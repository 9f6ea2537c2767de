// Chooses the kernel of a 4-bit product: by plan, or the variant that the op was told to use.
#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/kernels/linear_4bit/linear_4bit.h"

namespace bnb::cuda {
namespace {

// `dense_fits`: the products of `dense` are of one dtype with nothing to add but a bias of it, and cuBLASLt takes them.
Linear4BitGpuPlan chosen(const char* op, const Linear4BitProblem& p, bool dense_fits, int32_t forced,
                         const GpuInfo& gpu) {
  if (forced < 0) {
    if (!dense_fits) return plan_linear_4bit_gpu(p, gpu);
    return plan_with_library(gpu, [&](const GpuInfo& card) { return plan_linear_4bit_gpu(p, card); });
  }
  const Linear4BitGpuPlan plan = plan_linear_4bit_with(static_cast<Linear4BitVariant>(forced), p, gpu);
  if (!plan.possible)
    fail(Code::option, op, "BNB_PLAN_LINEAR_4BIT=", kLinear4BitVariants[forced], " cannot multiply ", p.m, " rows of ",
         name_of(p.dtype), " with a weight of [", p.n, ", ", p.k, "] on this device");
  return plan;
}

}  // namespace

void linear_4bit(const Linear4BitArgs& a, CudaStream& s) {
  if (a.m == 0 || a.n == 0) return;
  const Linear4BitProblem p = {.m = a.m,
                               .n = a.n,
                               .k = a.k,
                               .blocksize = a.w.blocksize,
                               .dtype = a.dtype,
                               .aligned = is_aligned(a.x, a.w),
                               .backward = false};
  const bool dense_fits =
      a.y_dtype == a.dtype && !a.residual && (!a.bias || a.bias_dtype == a.dtype) && a.n % 8 == 0 && a.k % 8 == 0;
  const Linear4BitGpuPlan plan = chosen("linear4bit", p, dense_fits, a.variant, s.gpu);
  switch (plan.variant) {
    case Linear4BitVariant::simt: return linear_4bit_simt(a, nullptr, s);
    case Linear4BitVariant::small_m: return linear_4bit_small_m(a, plan, s);
    case Linear4BitVariant::tile: return linear_4bit_tile(a, plan, s);
    case Linear4BitVariant::dense: return linear_4bit_dense(a, plan, s);
  }
}

void linear_4bit_backward(const Linear4BitBackwardArgs& a, CudaStream& s) {
  if (a.m == 0 || a.k == 0) return;
  const Linear4BitProblem p = {.m = a.m,
                               .n = a.n,
                               .k = a.k,
                               .blocksize = a.w.blocksize,
                               .dtype = a.dtype,
                               .aligned = is_aligned(a.dy, a.w),
                               .backward = true};
  const bool dense_fits = a.n % 8 == 0 && a.k % 8 == 0;
  const Linear4BitGpuPlan plan = chosen("linear4bitBackward", p, dense_fits, a.variant, s.gpu);
  switch (plan.variant) {
    case Linear4BitVariant::simt: return linear_4bit_backward_simt(a, nullptr, s);
    case Linear4BitVariant::small_m: return linear_4bit_backward_small_m(a, plan, s);
    case Linear4BitVariant::tile: return linear_4bit_backward_tile(a, plan, s);
    case Linear4BitVariant::dense: return linear_4bit_backward_dense(a, plan, s);
  }
}

}  // namespace bnb::cuda
