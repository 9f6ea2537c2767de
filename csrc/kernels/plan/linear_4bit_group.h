// How one launch of small_m computes products of one x with several 4-bit weights: each has a part of the
// multiprocessors, by its size, and within that the plan that it would have alone on a card of that many.
#pragma once
#include "kernels/linear_4bit.h"
#include "kernels/plan/linear_4bit.h"

namespace bnb {

struct Linear4BitGroupPlan {
  bool possible;
  Linear4BitGpuPlan part[kLinear4BitGroup];
  int64_t blocks;        // of the grid: those of part 0, then of part 1, then of part 2
  int64_t shared_bytes;  // of the part that needs most
};

// The problems differ in n and blocksize only; with swiglu they are two of one n, whose plans are the same. Not
// possible where small_m is not, for blocks of 32, or where there are more groups of outputs than counters.
constexpr Linear4BitGroupPlan plan_linear_4bit_group(const Linear4BitProblem* problems, int count, bool swiglu,
                                                     const GpuInfo& gpu) {
  Linear4BitGroupPlan group{};
  int64_t left_n = 0, left_sms = gpu.sms, groups = 0;
  for (int i = 0; i < count; i++) left_n += problems[i].n;
  for (int i = 0; i < count; i++) {
    const Linear4BitProblem& p = problems[i];
    if (p.blocksize < kLinear4BitRun) return group;
    // The nearest number to its share that leaves one for each of the others.
    const int64_t others = count - 1 - i;
    int64_t sms = left_n > 0 ? (2 * left_sms * p.n + left_n) / (2 * left_n) : 1;
    sms = swiglu ? gpu.sms / 2 : sms < 1 ? 1 : sms > left_sms - others ? left_sms - others : sms;
    if (sms < 1) return group;
    GpuInfo part = gpu;
    part.sms = static_cast<int32_t>(sms);
    const Linear4BitGpuPlan plan = linear_4bit_detail::plan_small_m(p, part);
    if (!plan.possible) return group;
    group.part[i] = plan;
    group.blocks += plan.blocks;
    if (plan.shared_bytes > group.shared_bytes) group.shared_bytes = plan.shared_bytes;
    groups += ceil_div(p.n, plan.outputs);
    left_n -= p.n;
    left_sms -= sms;
  }
  group.possible = groups <= kLinear4BitCounters;
  return group;
}

}  // namespace bnb
