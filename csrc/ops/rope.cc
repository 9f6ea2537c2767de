// Rotary position embedding of [batch, length, heads, dim], and the opposite turn for its gradient.

#include "kernels/rope.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
Angles check_angles(const char* op, const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t dim) {
  check_same_device(op, x, cos, sin);
  check_shape(cos.ndim() == 2 && cos.shape()[1] <= dim / 2 && sin.shape() == cos.shape(), op,
              "cos and sin must have the shape [positions, at most ", dim / 2, "], got ", cos.shape(), " and ",
              sin.shape());
  check_dtype_is(op, "cos", cos, DType::float32);
  check_dtype_is(op, "sin", sin, DType::float32);
  return {cos.ptr<float>(), sin.ptr<float>(), cos.shape()[0], cos.shape()[1]};
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool inverse,
            const std::optional<Tensor>& position) {
  constexpr const char* op = "rope";
  check_float(op, "x", x);
  const Shape& shape = x.shape();
  check_shape(x.ndim() == 3 || x.ndim() == 4, op,
              "x must have the shape [batch, length, heads, dim] or [tokens, heads, dim], got ", shape);
  const int64_t batch = x.ndim() == 4 ? shape[0] : 1, length = shape[-3], dim = shape[-1];
  const Angles angles = check_angles(op, x, cos, sin, dim);
  // One position is that of the first token, several are those of all.
  const bool each = position && position->numel() != 1;
  if (each) {
    check_same_device(op, x, *position);
    check_dtype_is(op, "positions", *position, DType::int32);
    check_numel(op, "positions", *position, batch * length);
  } else {
    check_option(offset >= 0 && offset <= angles.positions - length, op, "offset + length must be within the ",
                 angles.positions, " positions of the tables, got ", offset, " + ", length);
  }
  Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  enqueue(kernels::rope, x.device(),
          RopeArgs{
              .x = x.data(),
              .y = y.data(),
              .angles = angles,
              .positions = each ? position->ptr<int32_t>() : nullptr,
              .batch = batch,
              .length = length,
              .heads = shape[-2],
              .dim = dim,
              .offset = offset,
              .position = each ? Position{} : position_arg(op, x, position, angles.positions - length - offset + 1),
              .fault = x.device().fault(),
              .inverse = inverse,
              .dtype = x.dtype(),
          });
  return y;
}

}  // namespace bnb::ops
