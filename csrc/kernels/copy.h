// Moving elements without looking at them: slabs of an axis, permuted and repeated axes, and fills.
#pragma once
#include "core/kernel.h"
#include "kernels/position.h"

namespace bnb {

// Copies `rows` runs of run_bytes, one every from_pitch bytes to one every to_pitch bytes: a slice of an
// axis, a part of a concatenation, a write into a cache.
struct CopyRowsArgs {
  const void* from;
  void* to;
  int64_t rows, run_bytes;
  int64_t from_pitch, to_pitch;
  Position position;       // where the rows of `to` begin
  int64_t position_bytes;  // of one step of it
};
BNB_KERNEL(copy_rows, CopyRowsArgs)

// y[i0, i1, ...] = x[i0 * strides[0] + i1 * strides[1] + ...], y contiguous. A permutation has the strides
// of x in another order, a repeated axis has stride 0.
constexpr int kCopyAxes = 8;
struct CopyStridedArgs {
  const void* x;
  void* y;                     // [dims]
  int64_t dims[kCopyAxes];     // none is 0
  int64_t strides[kCopyAxes];  // in elements
  int32_t ndim;                // at least 1
  int32_t element_size;        // 1, 2, 4 or 8
};
BNB_KERNEL(copy_strided, CopyStridedArgs)

struct FillArgs {
  void* y;  // [n]
  int64_t n;
  uint64_t bits;         // of one element, in the low bytes
  int32_t element_size;  // 1, 2, 4 or 8
};
BNB_KERNEL(fill, FillArgs)

}  // namespace bnb
