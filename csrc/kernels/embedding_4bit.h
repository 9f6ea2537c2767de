// y = rows of a 4-bit table: only the blocks that the ids touch are decoded.
#pragma once
#include "core/kernel.h"
#include "kernels/linear_4bit.h"

namespace bnb {

struct Embedding4BitArgs {
  const int32_t* ids;  // [count], each in [0, rows)
  void* y;             // [count, cols] dtype
  Weight4Bit w;
  int64_t count, rows, cols;
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(embedding_4bit, Embedding4BitArgs)

}  // namespace bnb
