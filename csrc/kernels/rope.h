// Rotary position embedding: each pair (x[i], x[i + dim/2]) of a head is turned by the angle whose cosine
// and sine stand in row (offset + t) of the tables. The backward pass is the opposite turn.
#pragma once
#include "core/kernel.h"
#include "kernels/position.h"

namespace bnb {

struct RopeArgs {
  const void* x;     // [batch, length, heads, dim] dtype
  const float* cos;  // [positions, dim / 2]
  const float* sin;  // [positions, dim / 2]
  void* y;           // [batch, length, heads, dim] dtype
  int64_t batch, length, heads, dim;
  int64_t offset;     // position of t = 0; offset + length <= positions
  Position position;  // added to offset
  bool inverse;
  DType dtype;
};
BNB_KERNEL(rope, RopeArgs)

}  // namespace bnb
