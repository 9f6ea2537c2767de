// Products of up to 32 rows of x with several weights in one launch, and SwiGLU of two.
//
// Layout    as small_m.cuh, with x once for each product.
// Work      the blocks of the grid belong to the products in turn, by their sizes (plan/linear_4bit_group.h); each
// works
//           as small_m does. Under a SwiGLU the last block of either product to finish a group of outputs adds up both.
// Numerics  as small_m.cuh; SwiGLU takes the float32 sums and is rounded once.
// Needs     as small_m.cuh, for each product; blocks of 64 or more.
#include "cuda/kernels/linear_4bit/small_m.cuh"
#include "kernels/plan/linear_4bit_group.h"

namespace bnb::cuda {
namespace {

struct GroupArgs {
  SmallArgs part[kLinear4BitGroup];
  int32_t count;
};

template <class T, int Eights, bool Wide>
__global__ void __launch_bounds__(SmallM<T, Eights, Wide, false>::kThreads, 1)
    small_m_group_kernel(const BNB_GRID_CONSTANT GroupArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  int i = 0;
  while (i + 1 < a.count && static_cast<int>(blockIdx.x) >= a.part[i + 1].share.block0) i++;
  SmallM<T, Eights, Wide, false, true>(a.part[i], shared).run();
}

}  // namespace

void linear_4bit_group_small_m(const Linear4BitGroupArgs& a, const Linear4BitGroupPlan& plan, CudaStream& s) {
  int64_t sums = 0;
  for (int i = 0; i < a.count; i++)
    if (a.swiglu || plan.part[i].splits > 1) sums += plan.part[i].splits * a.m * a.n[i];
  float* partials = sums > 0 ? static_cast<float*>(s.scratch(static_cast<size_t>(sums) * sizeof(float))) : nullptr;
  GroupArgs args{};
  args.count = a.count;
  int32_t* counters = s.counters;
  int32_t block0 = 0;
  for (int i = 0; i < a.count; i++) {
    const Linear4BitGpuPlan& part = plan.part[i];
    const auto groups = static_cast<int32_t>(ceil_div(a.n[i], part.outputs)),
               blocks = static_cast<int32_t>(part.blocks);
    void* y = a.swiglu ? a.y[0] : a.y[i];
    args.part[i] = {a.x,
                    view_of(a.w[i]),
                    a.k,
                    {a.m,
                     a.n[i],
                     {y, nullptr, a.n[i], a.dtype, DType::float32},
                     partials,
                     counters,
                     part.sum_warps,
                     part.splits,
                     groups,
                     blocks,
                     block0,
                     a.swiglu ? i * part.splits : 0,
                     a.swiglu}};
    block0 += blocks;
    if (a.swiglu) continue;
    counters += groups;
    if (part.splits > 1) partials += part.splits * a.m * a.n[i];
  }
  visit_small_m(a.dtype, plan.part[0], a.w[0].blocksize, [&]<class T, int Eights, bool Wide, bool Half>() {
    if constexpr (!Half)
      launch(s, small_m_group_kernel<T, Eights, Wide>, dim3(static_cast<unsigned>(plan.blocks)),
             dim3(SmallM<T, Eights, Wide, Half>::kThreads), static_cast<size_t>(plan.shared_bytes), args);
  });
}

}  // namespace bnb::cuda
