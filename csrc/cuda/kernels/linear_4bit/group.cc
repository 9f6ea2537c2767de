// Products of one x with several 4-bit weights on a GPU, and SwiGLU of two of them.
#include "cuda/kernels/linear_4bit/linear_4bit.h"
#include "kernels/swiglu.h"

namespace bnb::cuda {

namespace {

// One launch of small_m where that can do it, and no other variant is asked for.
Linear4BitGroupPlan plan_of(const Linear4BitGroupArgs& a, const GpuInfo& gpu) {
  if (a.variant >= 0 && a.variant != static_cast<int32_t>(Linear4BitVariant::small_m)) return {};
  Linear4BitProblem problems[kLinear4BitGroup];
  for (int i = 0; i < a.count; i++)
    problems[i] = {.m = a.m,
                   .n = a.n[i],
                   .k = a.k,
                   .blocksize = a.w[i].blocksize,
                   .dtype = a.dtype,
                   .aligned = is_aligned(a.x, a.w[i]),
                   .backward = false};
  return plan_linear_4bit_group(problems, a.count, a.swiglu, gpu);
}

}  // namespace

void linear_4bit_group(const Linear4BitGroupArgs& a, CudaStream& s) {
  if (a.m == 0) return;
  const Linear4BitGroupPlan plan = plan_of(a, s.gpu);
  if (plan.possible) return linear_4bit_group_small_m(a, plan, s);
  if (!a.swiglu) {
    for (int i = 0; i < a.count; i++) linear_4bit(one_of(a, i, a.y[i], a.dtype), s);
    return;
  }
  const int64_t size = a.m * a.n[0];
  const auto nbytes = static_cast<size_t>((size * static_cast<int64_t>(size_of(a.dtype)) + 255) / 256 * 256);
  auto* gate = static_cast<unsigned char*>(s.scratch(2 * nbytes));
  linear_4bit(one_of(a, 0, gate, a.dtype), s.inner());
  linear_4bit(one_of(a, 1, gate + nbytes, a.dtype), s.inner());
  swiglu(SwigluArgs{.gate = gate, .up = gate + nbytes, .y = a.y[0], .size = size, .dtype = a.dtype}, s);
}

}  // namespace bnb::cuda
