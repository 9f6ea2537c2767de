// Rotary position embedding: each pair (x[i], x[i + pairs]) of a head is turned by the angle whose cosine and sine
// stand in the row of its position; what follows the pairs passes. The backward pass is the opposite turn.
#pragma once
#include "core/kernel.h"
#include "kernels/position.h"

namespace bnb {

struct Angles {
  const float* cos;          // [positions, pairs]
  const float* sin;          // as cos
  int64_t positions, pairs;  // 2 * pairs <= dim
};

struct RopeArgs {
  const void* x;  // [batch, length, heads, dim] dtype
  void* y;        // as x
  Angles angles;
  const int32_t* positions;  // [batch, length], or null: offset + t. Those outside the tables are reported, and turn 0
  int64_t batch, length, heads, dim;
  int64_t offset;     // position of t = 0; offset + length <= angles.positions
  Position position;  // added to offset
  Fault* fault;
  bool inverse;
  DType dtype;
};
BNB_KERNEL(rope, RopeArgs)

}  // namespace bnb
