// Chooses the kernel of a product: by plan, by BNB_PLAN_MATMUL, or the next one where cuBLASLt gives up.
#include <cstdlib>
#include <optional>
#include <string>

#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/kernels/matmul/matmul.h"

namespace bnb::cuda {
namespace {

constexpr const char* kNames[] = {"simt", "mma", "cublaslt"};

// Read once: the environment may change while the stream's worker runs.
std::optional<MatmulVariant> forced_variant() {
  static const std::string name = [] {
    const char* value = std::getenv("BNB_PLAN_MATMUL");
    return std::string(value ? value : "");
  }();
  if (name.empty()) return {};
  for (int i = 0; i < 3; i++)
    if (name == kNames[i]) return static_cast<MatmulVariant>(i);
  fail(Code::option, "matmul", "BNB_PLAN_MATMUL must be simt, mma or cublaslt, got ", name);
}

}  // namespace

MatmulProblem problem_of(const MatmulArgs& a) {
  const auto starts_aligned = [](const void* p, int64_t ld, int64_t stride, DType t) {
    const int64_t unit = 16 / static_cast<int64_t>(size_of(t));
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % unit == 0 && stride % unit == 0;
  };
  return {.batch = a.batch,
          .m = a.m,
          .n = a.n,
          .k = a.k,
          .dtype_a = a.dtype_a,
          .dtype_b = a.dtype_b,
          .dtype_c = a.dtype_c,
          .transpose_a = a.transpose_a,
          .transpose_b = a.transpose_b,
          .accumulate = a.accumulate,
          .bias = a.bias != nullptr,
          .aligned = starts_aligned(a.a, a.transpose_a ? a.m : a.k, a.stride_a, a.dtype_a) &&
                     starts_aligned(a.b, a.transpose_b ? a.k : a.n, a.stride_b, a.dtype_b)};
}

MatmulPlan chosen_plan(const MatmulProblem& p, const GpuInfo& gpu) {
  const auto forced = forced_variant();
  const MatmulPlan plan = plan_with_library(
      gpu, [&](const GpuInfo& card) { return forced ? plan_with(*forced, p, card) : plan_matmul(p, card); });
  if (!plan.possible)
    fail(Code::option, "matmul", "BNB_PLAN_MATMUL=", kNames[static_cast<int>(*forced)], " cannot multiply [", p.m, ", ",
         p.k, "] ", name_of(p.dtype_a), " by [", p.k, ", ", p.n, "] ", name_of(p.dtype_b), " on this device");
  return plan;
}

void matmul(const MatmulArgs& a, CudaStream& s) {
  if (a.batch == 0 || a.m == 0 || a.n == 0) return;
  const MatmulProblem p = problem_of(a);
  MatmulPlan plan = chosen_plan(p, s.gpu);
  if (plan.variant == MatmulVariant::cublaslt) {
    if (cublaslt_matmul(a, s)) return;
    GpuInfo without = s.gpu;
    without.has_cublaslt = false;
    plan = plan_matmul(p, without);
  }
  plan.variant == MatmulVariant::mma ? matmul_mma(a, plan, s) : matmul_simt(a, plan, s);
}

}  // namespace bnb::cuda
