// y[i] = weight[ids[i]], and the gradient of weight: the rows of dy added up per id, in the order of i.
// An id outside the table is reported and reads as a row of zeros.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct EmbeddingArgs {
  const int32_t* ids;  // [count]
  const void* weight;  // [rows, row_bytes] of any dtype
  void* y;             // [count, row_bytes]
  int64_t count, rows, row_bytes;
  Fault* fault;
};
BNB_KERNEL(embedding, EmbeddingArgs)

struct EmbeddingBackwardArgs {
  const int32_t* ids;  // [count]
  const void* dy;      // [count, cols] dtype
  void* dweight;       // [rows, cols] dtype; every row is written
  int64_t count, rows, cols;
  int64_t padding;          // the row that gets no gradient, or -1
  bool scale_by_frequency;  // divide each row by how often its id occurs
  DType dtype;
};
BNB_KERNEL(embedding_backward, EmbeddingBackwardArgs)

// Scales the rows of weight that ids name, in place, so that sum(|w|^p)^(1/p) <= max_norm.
struct EmbeddingRenormArgs {
  const int32_t* ids;  // [count]
  void* weight;        // [rows, cols] dtype
  int64_t count, rows, cols;
  float max_norm;
  float p;  // > 0; infinity means the largest magnitude
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(embedding_renorm, EmbeddingRenormArgs)

}  // namespace bnb
