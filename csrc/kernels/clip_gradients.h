// Clips a list of gradients in place, by their joint norm or by value, without the host seeing the norm.
#pragma once
#include "core/kernel.h"

namespace bnb {

// The numbers cross to JavaScript (src/optim/clip.ts).
enum class ClipRule : int32_t { norm2, norm_max, value };

constexpr int kClipChunk = 16384;  // elements of one work item

struct ClipJob {
  void* g;  // [n] dtype
  int64_t n;
  int64_t first_chunk;  // chunks of the jobs before this one
  DType dtype;
};

struct ClipGradientsArgs {
  const ClipJob* jobs;  // [job_count], ascending first_chunk, none empty
  int64_t job_count, chunk_count;
  double* partials;  // [chunk_count] scratch; null for ClipRule::value
  float* norm;       // [1] the norm before clipping; null for ClipRule::value
  float limit;       // largest norm, or largest magnitude
  ClipRule rule;
};
BNB_KERNEL(clip_gradients, ClipGradientsArgs)

}  // namespace bnb
