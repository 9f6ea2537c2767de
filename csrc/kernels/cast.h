// y = x in another element type. To an integer: toward zero, saturating, NaN becomes 0. To a float: to
// nearest even, through float32.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct CastArgs {
  const void* x;  // [n] from; any type but float64
  void* y;        // [n] to; any type but float64
  int64_t n;
  DType from, to;
};
BNB_KERNEL(cast, CastArgs)

}  // namespace bnb
