// loss = mean over the rows that count of log(sum(exp(logits))) - logits[target]. A row whose target is
// `ignore` does not count; a target outside the classes is reported and does not count either.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct CrossEntropyArgs {
  const void* logits;      // [rows, classes] dtype
  const int32_t* targets;  // [rows]
  float* loss;             // [1]; NaN when no row counts
  float* lse;              // [rows, 2]: the largest logit m, and log(sum(exp(logits - m)))
  float* count;            // [1] rows that count
  int64_t rows, classes;
  int32_t ignore;
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(cross_entropy, CrossEntropyArgs)

// dlogits = (softmax(logits) - onehot(target)) * dloss / count, zero in rows that do not count.
struct CrossEntropyBackwardArgs {
  const float* dloss;      // [1]
  const void* logits;      // [rows, classes] dtype
  const int32_t* targets;  // [rows]
  const float* lse;        // [rows, 2]
  const float* count;      // [1]
  void* dlogits;           // [rows, classes] dtype
  int64_t rows, classes;
  int32_t ignore;
  DType dtype;
};
BNB_KERNEL(cross_entropy_backward, CrossEntropyBackwardArgs)

}  // namespace bnb
