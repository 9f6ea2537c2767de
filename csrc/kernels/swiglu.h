// y = silu(gate) * up, silu(g) = g * sigmoid(g), and its gradient, elementwise.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct SwigluArgs {
  const void* gate;  // [size] dtype
  const void* up;    // [size] dtype
  void* y;           // [size] dtype
  int64_t size;
  DType dtype;
};
BNB_KERNEL(swiglu, SwigluArgs)

struct SwigluBackwardArgs {
  const void* dy;    // [size] dtype
  const void* gate;  // [size] dtype
  const void* up;    // [size] dtype
  void* dgate;       // [size] dtype
  void* dup;         // [size] dtype
  int64_t size;
  DType dtype;
};
BNB_KERNEL(swiglu_backward, SwigluBackwardArgs)

}  // namespace bnb
