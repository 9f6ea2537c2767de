// What the plans of products say, also for a GPU that need not be there. Problems come and plans go as records of
// numbers, in the order that src/ops/plans.ts has them.

#include <vector>

#include "kernels/plan/linear_4bit.h"
#include "kernels/plan/linear_4bit_cpu.h"
#include "kernels/plan/linear_4bit_group.h"
#include "kernels/plan/matmul.h"
#include "kernels/plan/residency.h"
#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// Reads a record from its first number on; it begins with the GPU.
class Record {
 public:
  Record(const char* op, const std::vector<double>& numbers) : op_(op), numbers_(numbers) {
    for (const double v : numbers)
      check_argument(v >= -1 && v <= 9007199254740992.0 && v == static_cast<double>(static_cast<int64_t>(v)), op,
                     "the record must hold whole numbers from -1 on, got ", v);
  }

  // The next number: an integer, an enum or a bool, as what it initializes wants.
  template <class T>
  operator T() {
    check_argument(at_ < numbers_.size(), op_, "the record ends after ", at_, " numbers");
    const double v = numbers_[at_++];
    if constexpr (std::is_same_v<T, bool>) {
      return v != 0;
    } else {
      return static_cast<T>(static_cast<int64_t>(v));
    }
  }
  size_t left() const { return numbers_.size() - at_; }

 private:
  const char* op_;
  const std::vector<double>& numbers_;
  size_t at_ = 0;
};

GpuInfo gpu_of(const char* op, Record& r) {
  const GpuInfo gpu = {.cc = r, .sms = r, .shared_per_block = r, .l2_bytes = r, .has_cublaslt = r};
  check_argument(gpu.sms > 0, op, "sms must be positive, got ", gpu.sms);
  return gpu;
}

void check_variant(const char* op, int32_t variant, int32_t count) {
  check_option(variant < count, op, "the variant must be -1 or below ", count, ", got ", variant);
}

}  // namespace

int64_t linear_4bit_plan(int64_t m, int64_t k) { return static_cast<int64_t>(plan_linear_4bit(m, k)); }

std::vector<double> linear_4bit_gpu_plan(const std::vector<double>& problem) {
  constexpr const char* op = "linear4bitGpuPlan";
  Record r(op, problem);
  const GpuInfo gpu = gpu_of(op, r);
  const Linear4BitProblem p = {.m = r, .n = r, .k = r, .blocksize = r, .dtype = r, .aligned = r, .backward = r};
  const int32_t variant = r;
  check_variant(op, variant, 4);
  const Linear4BitGpuPlan plan = variant < 0 ? plan_linear_4bit_gpu(p, gpu)
                                             : plan_linear_4bit_with(static_cast<Linear4BitVariant>(variant), p, gpu);
  return {double(plan.possible),  double(plan.variant),     double(plan.tokens), double(plan.outputs),
          double(plan.sum_warps), double(plan.splits),      double(plan.stages), double(plan.wide_table),
          double(plan.blocks),    double(plan.shared_bytes)};
}

std::vector<double> linear_4bit_group_gpu_plan(const std::vector<double>& group) {
  constexpr const char* op = "linear4bitGroupGpuPlan";
  Record r(op, group);
  const GpuInfo gpu = gpu_of(op, r);
  const Linear4BitProblem p = {.m = r, .n = 0, .k = r, .blocksize = r, .dtype = r, .aligned = true, .backward = false};
  const bool swiglu = r;
  const size_t count = r.left();
  check_argument(count == 2 || (count == 3 && !swiglu), op, "there must be two weights, or three without swiglu, got ",
                 count);
  Linear4BitProblem problems[kLinear4BitGroup];
  for (size_t i = 0; i < count; i++) {
    problems[i] = p;
    problems[i].n = r;
  }
  const Linear4BitGroupPlan plan = plan_linear_4bit_group(problems, static_cast<int>(count), swiglu, gpu);
  std::vector<double> result = {double(plan.possible), double(plan.shared_bytes)};
  for (const Linear4BitGpuPlan& part : plan.part) result.push_back(double(part.blocks));
  return result;
}

std::vector<double> matmul_gpu_plan(const std::vector<double>& problem) {
  constexpr const char* op = "matmulGpuPlan";
  Record r(op, problem);
  const GpuInfo gpu = gpu_of(op, r);
  MatmulProblem p = {};
  p.batch = r, p.m = r, p.n = r, p.k = r;
  p.dtype_a = r;
  p.dtype_b = p.dtype_c = p.dtype_a;
  p.transpose_a = r, p.transpose_b = r, p.aligned = r;
  const int32_t variant = r;
  check_variant(op, variant, 3);
  const MatmulPlan plan = variant < 0 ? plan_matmul(p, gpu) : plan_with(static_cast<MatmulVariant>(variant), p, gpu);
  return {double(plan.possible), double(plan.variant), double(plan.tile), double(plan.blocks),
          double(plan.shared_bytes)};
}

int64_t resident_blocks(const std::vector<double>& kernel) {
  Record r("residentBlocks", kernel);
  const GpuInfo gpu = gpu_of("residentBlocks", r);
  const int32_t threads = r, registers = r;
  const int64_t shared = r;
  check_argument(threads > 0 && registers > 0 && shared >= 0, "residentBlocks",
                 "threads and registers must be positive, got ", threads, " and ", registers);
  return bnb::resident_blocks(gpu, threads, registers, shared);
}

}  // namespace bnb::ops
