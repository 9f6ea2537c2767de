// Which way the CPU computes a 4-bit product: a pure function of the problem and the instruction set.
#pragma once
#include "kernels/linear_4bit.h"

namespace bnb {

// Rows of x up to which the fused kernel beats decoding into panels, measured on 4096 x 4096: decoding costs the
// same for any number of rows, and the wider the vectors the less of it there is to share.
constexpr int64_t kSmallRows = 8;

constexpr Linear4BitPlan plan_linear_4bit(int64_t m, int64_t k) {
  if (k == 0 || k % 64 != 0) return Linear4BitPlan::plain;
  return m <= kSmallRows ? Linear4BitPlan::small : Linear4BitPlan::packed;
}

constexpr Linear4BitPlan plan_linear_4bit_backward(int64_t k) {
  return k == 0 || k % 64 != 0 ? Linear4BitPlan::plain : Linear4BitPlan::packed;
}

}  // namespace bnb
