// The ways to multiply matrices on a GPU; dispatch.cc chooses.
#pragma once
#include "cuda/stream.h"
#include "kernels/matmul.h"
#include "kernels/plan/matmul.h"

namespace bnb::cuda {

MatmulProblem problem_of(const MatmulArgs& a);
// The plan for this product, or that of the variant in BNB_PLAN_MATMUL; throws if that variant cannot do it.
// Loads cuBLASLt if the plan could use it.
MatmulPlan chosen_plan(const MatmulProblem& p, const GpuInfo& gpu);

void matmul_simt(const MatmulArgs& a, const MatmulPlan& plan, CudaStream& s);
void matmul_mma(const MatmulArgs& a, const MatmulPlan& plan, CudaStream& s);

}  // namespace bnb::cuda
