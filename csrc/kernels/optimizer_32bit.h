// One optimizer step with float32 states over any number of parameters: a list of jobs, one per parameter,
// cut into chunks of equal size. The job list is shared with the 8-bit contract.
#pragma once
#include "core/kernel.h"

namespace bnb {

// The numbers cross to JavaScript (src/optim/update-rule.ts). lamb and lars are the published algorithms with a
// trust ratio; LAMB and LARS as update-norm clipping are adam and momentum with max_unorm > 0.
enum class UpdateRule : int32_t { adam, ademamix, lion, momentum, rmsprop, adagrad, lamb, lars };

constexpr int kOptimizerBlock = 256;    // elements that share a scale in 8-bit states
constexpr int kOptimizerChunk = 16384;  // elements of one work item; a multiple of kOptimizerBlock

// Everything the rules need, prepared in float64 and rounded once. c1 = 1 - beta1^t, c2 = sqrt(1 - beta2^t).
struct OptimizerScalars {
  float beta1, rest1;  // rest = 1 - beta
  float beta2, rest2;
  float beta3, rest3;
  float alpha;           // ademamix
  float inv_c1, inv_c2;  // ademamix, lamb
  float eps;             // adam: eps * c2
  float decay;           // p is multiplied by it first; 1 for coupled decay
  float weight_decay;    // coupled decay, and lamb
  float step;            // p -= step * direction
  float factor;          // update vector = factor * direction; matters for norms only
  float grad_scale;
  float skip_below;  // elements with |g| <= skip_below are skipped: 0 or -1
  float max_unorm;   // 0: no norms (unless the rule has a trust ratio)
  float norm_eps;
  int32_t first;  // t = 1
};

struct OptimizerJob {
  void* p;         // [n] p_dtype
  const void* g;   // [n] g_dtype
  void* state1;    // [n], ademamix [2, n]: float or uint8
  void* state2;    // [n] or null
  float* absmax1;  // 8-bit: [blocks], ademamix [2, blocks]
  float* absmax2;  // 8-bit: [blocks] or null
  float* unorm;    // [1] receives the norm of the update vector, or null
  int64_t n;
  int64_t first_chunk;  // chunks of the jobs before this one
  DType p_dtype, g_dtype;
  UpdateRule rule;
  OptimizerScalars scalars;
};

// Whether a job needs the norms of the parameter and of its update before it can run.
BNB_INLINE bool needs_norms(const OptimizerJob& job) {
  return job.scalars.max_unorm > 0 || job.rule == UpdateRule::lamb || job.rule == UpdateRule::lars;
}

struct OptimizerArgs {
  const OptimizerJob* jobs;  // [job_count], ascending first_chunk, none empty
  int64_t job_count, chunk_count;
  uint32_t rules;     // bit r is set when some job has rule r: what a host can know of jobs on a device
  double* partials;   // [chunk_count, 2] scratch for norms; null when no job needs any
  float* scales;      // [job_count] scratch, null with partials
  double* nonfinite;  // [1] grows by the number of elements left alone because something was not finite
};
BNB_KERNEL(optimizer_32bit, OptimizerArgs)

}  // namespace bnb
