// The router of a mixture of experts: softmax over the experts, and the k largest of it, equal ones by index.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct ChooseExpertsArgs {
  const void* logits;  // [rows, n] dtype
  float* shares;       // [rows, k], the largest first
  int32_t* experts;    // [rows, k]
  int64_t rows, n, k;  // k <= n
  bool normalize;      // whether the k shares are divided by their sum
  DType dtype;
};
BNB_KERNEL(choose_experts, ChooseExpertsArgs)

struct ChooseExpertsBackwardArgs {
  const float* dshares;    // [rows, k]
  const void* logits;      // [rows, n] dtype
  const float* shares;     // [rows, k], the result of the forward pass
  const int32_t* experts;  // [rows, k]
  void* dlogits;           // [rows, n] dtype
  int64_t rows, n, k;
  bool normalize;
  DType dtype;
};
BNB_KERNEL(choose_experts_backward, ChooseExpertsBackwardArgs)

// Whether share a of expert i comes before share b of expert j; a NaN comes last.
BNB_INLINE bool comes_before(float a, int64_t i, float b, int64_t j) {
  if (a != a) return b != b && i < j;
  return b != b || a > b || (a == b && i < j);
}

}  // namespace bnb
