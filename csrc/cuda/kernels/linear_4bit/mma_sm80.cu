// y[m, n] = x[m, k] dequantize(w)[n, k]^T + bias + residual for up to 32 rows of x, on the matrix units: small_m.cuh
// says how.
//
// Layout, Work, Numerics, Needs    those of small_m.cuh.
#include "cuda/kernels/linear_4bit/small_m.cuh"

namespace bnb::cuda {
namespace {

template <class T, int Eights, bool Wide, bool Half>
__global__ void __launch_bounds__(SmallM<T, Eights, Wide, Half>::kThreads, 1) small_m_kernel(SmallArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  SmallM<T, Eights, Wide, Half>(a, shared).run();
}

}  // namespace

void linear_4bit_small_m(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const auto groups = static_cast<int32_t>(ceil_div(a.n, plan.outputs));
  float* partials = nullptr;
  if (plan.splits > 1)
    partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.splits * a.m * a.n) * sizeof(float)));
  const SmallArgs args = {a.x,
                          view_of(a.w),
                          a.k,
                          {a.m,
                           a.n,
                           {a.y, a.bias, a.n, a.y_dtype, a.bias_dtype, a.residual},
                           partials,
                           s.counters,
                           plan.sum_warps,
                           plan.splits,
                           groups}};
  visit_small_m(a.dtype, plan, a.w.blocksize, [&]<class T, int Eights, bool Wide, bool Half>() {
    launch(s, small_m_kernel<T, Eights, Wide, Half>, dim3(static_cast<unsigned>(plan.blocks)),
           dim3(SmallM<T, Eights, Wide, Half>::kThreads), static_cast<size_t>(plan.shared_bytes), args);
  });
}

}  // namespace bnb::cuda
