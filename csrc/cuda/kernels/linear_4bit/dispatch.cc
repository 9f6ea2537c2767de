// Chooses the kernel of a 4-bit product: by plan, or the variant that the op was told to use.
#include "core/error.h"
#include "cuda/kernels/linear_4bit/linear_4bit.h"

namespace bnb::cuda {
namespace {

bool is_multiple(const void* p, uintptr_t n) { return reinterpret_cast<uintptr_t>(p) % n == 0; }

Linear4BitGpuPlan chosen(const char* op, const Linear4BitProblem& p, int32_t forced, const GpuInfo& gpu) {
  if (forced < 0) return plan_linear_4bit_gpu(p, gpu);
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
                               .aligned = is_multiple(a.x, 16) && is_multiple(a.w.packed, 8),
                               .backward = false};
  const Linear4BitGpuPlan plan = chosen("linear4bit", p, a.variant, s.gpu);
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
                               .aligned = is_multiple(a.dy, 16) && is_multiple(a.w.packed, 8),
                               .backward = true};
  const Linear4BitGpuPlan plan = chosen("linear4bitBackward", p, a.variant, s.gpu);
  switch (plan.variant) {
    case Linear4BitVariant::simt: return linear_4bit_backward_simt(a, nullptr, s);
    case Linear4BitVariant::small_m: return linear_4bit_backward_small_m(a, plan, s);
    case Linear4BitVariant::tile: return linear_4bit_backward_tile(a, plan, s);
    case Linear4BitVariant::dense: return linear_4bit_backward_dense(a, plan, s);
  }
}

}  // namespace bnb::cuda
