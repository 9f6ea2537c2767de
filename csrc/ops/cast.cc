// Conversion of the element type.
#include "kernels/cast.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor cast(const Tensor& x, DType dtype) {
  if (dtype == x.dtype()) return x;
  check_dtype(x.dtype() != DType::float64 && dtype != DType::float64, "cast", "float64 is storage only, got ",
              name_of(x.dtype()), " to ", name_of(dtype));
  Tensor y = Tensor::empty(x.shape(), dtype, x.device());
  enqueue(kernels::cast, x.device(),
          CastArgs{.x = x.data(), .y = y.data(), .n = x.numel(), .from = x.dtype(), .to = dtype});
  return y;
}

}  // namespace bnb::ops
