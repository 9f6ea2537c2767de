// y[i] = x[i] * scale where the i-th random word is at least threshold, else 0. The mask is never stored:
// the backward pass runs the same kernel on dy with the same seed and offset.
#pragma once
#include "core/kernel.h"
#include "core/random.h"

namespace bnb {

struct DropoutArgs {
  const void* x;  // [n] dtype
  void* y;        // [n] dtype
  int64_t n;
  uint64_t seed, offset;  // word i as in random_fill.h
  uint64_t threshold;     // p * 2^32; 2^32 drops all
  float scale;            // 1 / (1 - p); 0 for p = 1
  DType dtype;
};
BNB_KERNEL(dropout, DropoutArgs)

}  // namespace bnb
