// z = y + (x A[a]^T) B[a] for rows of several adapters: row t has adapter a where segment[a] <= t < segment[a + 1], and
// rows outside of all segments stay as they are. Scales are part of B.
#pragma once
#include "core/integer.h"
#include "core/kernel.h"

namespace bnb {

struct LoraRowsArgs {
  const void* y;           // [rows, outputs] dtype
  const void* x;           // [rows, inputs] dtype
  const void* a;           // [adapters, rank, inputs] dtype
  const void* b;           // [adapters, rank, outputs] dtype
  const int32_t* segment;  // [adapters + 1], ascending
  void* z;                 // as y
  int64_t rows, inputs, outputs, rank, adapters;
  DType dtype;
};
BNB_KERNEL(lora_rows, LoraRowsArgs)

// The adapter of a row, or -1. No value of `segment` leads out of the tables.
BNB_INLINE int64_t adapter_of(const LoraRowsArgs& args, int64_t row) {
  int64_t begun = 0;
  for (int64_t i = 0; i <= args.adapters; i++) begun += args.segment[i] <= row ? 1 : 0;
  return begun <= args.adapters ? begun - 1 : -1;
}

}  // namespace bnb
