// TEMPORARY
#include "cuda/kernels/matmul/matmul.h"
namespace bnb::cuda {
void matmul_mma(const MatmulArgs& a, const MatmulPlan&, CudaStream& s) {
  MatmulProblem p = problem_of(a);
  matmul_simt(a, plan_with(MatmulVariant::simt, p, s.gpu), s);
}
}  // namespace bnb::cuda
