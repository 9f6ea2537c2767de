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

// The step before attention with a cache: y = q turned, and at the positions of the cache that the angles are those of,
// k turned and v as it is.
struct RopeAppendArgs {
  const void* q;     // [batch, length, heads, dim] dtype
  const void* k;     // [batch, length, kv_heads, dim] dtype
  const void* v;     // [batch, length, kv_heads, dim] dtype
  const float* cos;  // [positions, dim / 2]
  const float* sin;  // [positions, dim / 2]
  void* y;           // [batch, length, heads, dim] dtype
  void* keys;        // [batch, capacity, kv_heads, dim] dtype
  void* values;      // [batch, capacity, kv_heads, dim] dtype
  int64_t batch, length, heads, kv_heads, dim, capacity;
  int64_t offset;     // as above; offset + length <= capacity
  Position position;  // added to offset
  DType dtype;
};
BNB_KERNEL(rope_append, RopeAppendArgs)

}  // namespace bnb
