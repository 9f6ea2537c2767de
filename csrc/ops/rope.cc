// Rotary position embedding of [batch, length, heads, dim], and the opposite turn for its gradient.

#include "kernels/rope.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool inverse,
            const std::optional<Tensor>& position) {
  check_float("rope", "x", x);
  check_same_device("rope", x, cos, sin);
  check_shape(x.ndim() == 4 && x.shape()[3] % 2 == 0, "rope",
              "x must have the shape [batch, length, heads, dim] with an even dim, got ", x.shape());
  check_shape(cos.ndim() == 2 && cos.shape()[1] == x.shape()[3] / 2 && sin.shape() == cos.shape(), "rope",
              "cos and sin must have the shape [positions, ", x.shape()[3] / 2, "], got ", cos.shape(), " and ",
              sin.shape());
  check_dtype_is("rope", "cos", cos, DType::float32);
  check_dtype_is("rope", "sin", sin, DType::float32);
  check_option(offset >= 0 && offset <= cos.shape()[0] - x.shape()[1], "rope", "offset + length must be within the ",
               cos.shape()[0], " positions of the tables, got ", offset, " + ", x.shape()[1]);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::rope, x.device(),
          RopeArgs{
              .x = x.data(),
              .cos = cos.ptr<float>(),
              .sin = sin.ptr<float>(),
              .y = y.data(),
              .batch = x.shape()[0],
              .length = x.shape()[1],
              .heads = x.shape()[2],
              .dim = x.shape()[3],
              .offset = offset,
              .position = position_arg("rope", x, position, cos.shape()[0] - x.shape()[1] - offset + 1),
              .inverse = inverse,
              .dtype = x.dtype(),
          });
  return y;
}

}  // namespace bnb::ops
