// What the plan of matrix products says about a GPU that need not be there.
#include "kernels/plan/matmul.h"
#include "ops/ops.h"

namespace bnb::ops {

std::tuple<bool, int64_t, int64_t, int64_t, int64_t> matmul_gpu_plan(int64_t batch, int64_t m, int64_t n, int64_t k,
                                                                     DType dtype, bool transpose_a, bool transpose_b,
                                                                     bool aligned, int32_t cc, int32_t sms,
                                                                     int64_t shared_per_block, bool has_cublaslt,
                                                                     int32_t forced) {
  const MatmulProblem problem = {.batch = batch,
                                 .m = m,
                                 .n = n,
                                 .k = k,
                                 .dtype_a = dtype,
                                 .dtype_b = dtype,
                                 .dtype_c = dtype,
                                 .transpose_a = transpose_a,
                                 .transpose_b = transpose_b,
                                 .accumulate = false,
                                 .bias = false,
                                 .aligned = aligned};
  const GpuInfo gpu = {
      .cc = cc, .sms = sms, .shared_per_block = shared_per_block, .l2_bytes = 0, .has_cublaslt = has_cublaslt};
  const MatmulPlan plan =
      forced < 0 ? plan_matmul(problem, gpu) : plan_with(static_cast<MatmulVariant>(forced), problem, gpu);
  return {plan.possible, static_cast<int64_t>(plan.variant), static_cast<int64_t>(plan.tile), plan.blocks,
          plan.shared_bytes};
}

}  // namespace bnb::ops
