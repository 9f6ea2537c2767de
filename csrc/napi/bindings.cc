// One line per op of ops.h. The names in parentheses appear in error messages.

#include "napi/bind.h"
#include "ops/ops.h"

namespace bnb {

void define_ops(Env& env, napi_value exports) {
  const Binder b{env, exports};

  // tensors
  b.bind<&ops::empty>("empty(shape, dtype, device)");
  b.bind<&ops::view>("view(x, shape, dtype, offset)");
  b.bind<&ops::to_device>("toDevice(x, device)");
  b.bind<&ops::quantized_4bit>(
      "quantized4bit(packed, absmax, nestedAbsmax, nestedCode, offset, shape, blocksize, nestedBlocksize, type, "
      "dtype)");
  b.bind<&ops::quantized_parts>("quantizedParts(weight)");

  // matrix products
  b.bind<&ops::matmul>("matmul(a, b, transposeA, transposeB)");
  b.bind<&ops::matmul_backward>("matmulBackward(a, b, dy, transposeA, transposeB, needsA, needsB)");
  b.bind<&ops::linear>("linear(x, weight, bias)");
  b.bind<&ops::linear_backward>("linearBackward(x, weight, dy, needsX, needsWeight, needsBias)");
  b.bind<&ops::fma_peak>("fmaPeak(iterations, device)");
}

}  // namespace bnb
