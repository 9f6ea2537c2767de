// Rotary position embedding of [batch, length, heads, dim], the opposite turn for its gradient, and the turn on the way
// into a cache.

#include "kernels/rope.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// x [batch, length, heads, dim] of an even dim, and tables of its angles.
void check_heads(const char* op, const char* name, const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_float(op, name, x);
  check_same_device(op, x, cos, sin);
  check_shape(x.ndim() == 4 && x.shape()[3] % 2 == 0, op, name,
              " must have the shape [batch, length, heads, dim] with an even dim, got ", x.shape());
  check_shape(cos.ndim() == 2 && cos.shape()[1] == x.shape()[3] / 2 && sin.shape() == cos.shape(), op,
              "cos and sin must have the shape [positions, ", x.shape()[3] / 2, "], got ", cos.shape(), " and ",
              sin.shape());
  check_dtype_is(op, "cos", cos, DType::float32);
  check_dtype_is(op, "sin", sin, DType::float32);
}

}  // namespace

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

Tensor rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cos, const Tensor& sin,
                   const Tensor& keys, const Tensor& values, int64_t offset, const std::optional<Tensor>& position) {
  constexpr const char* op = "ropeAppend";
  check_heads(op, "q", q, cos, sin);
  check_same_device(op, q, k, v);
  check_same_device(op, q, keys, values);
  const Shape& shape = k.shape();
  check_shape(k.ndim() == 4 && shape[0] == q.shape()[0] && shape[1] == q.shape()[1] && shape[3] == q.shape()[3], op,
              "k must have the batch, length and dim of q, ", q.shape(), ", got ", shape);
  check_shape_is(op, "v", v, shape);
  check_shape(keys.ndim() == 4 && keys.shape()[0] == shape[0] && keys.shape()[2] == shape[2] &&
                  keys.shape()[3] == shape[3] && values.shape() == keys.shape(),
              op, "keys and values must have the shape [", shape[0], ", positions, ", shape[2], ", ", shape[3],
              "], got ", keys.shape(), " and ", values.shape());
  check_same_dtype(op, "q", q, "k", k);
  check_same_dtype(op, "q", q, "v", v);
  check_same_dtype(op, "q", q, "keys", keys);
  check_same_dtype(op, "q", q, "values", values);
  check_apart(op, "keys", keys, "values", values);
  for (const Tensor* cache : {&keys, &values})
    for (const Tensor* read : {&q, &k, &v}) check_apart(op, "keys and values", *cache, "q, k or v", *read);
  const int64_t capacity = keys.shape()[1], positions = capacity < cos.shape()[0] ? capacity : cos.shape()[0];
  check_option(offset >= 0 && offset <= positions - shape[1], op, "offset + length must be within ", positions,
               " positions, got ", offset, " + ", shape[1]);
  Tensor y = Tensor::empty(q.shape(), q.dtype(), q.device());
  enqueue(kernels::rope_append, q.device(),
          RopeAppendArgs{
              .q = q.data(),
              .k = k.data(),
              .v = v.data(),
              .cos = cos.ptr<float>(),
              .sin = sin.ptr<float>(),
              .y = y.data(),
              .keys = keys.changed().data(),
              .values = values.changed().data(),
              .batch = shape[0],
              .length = shape[1],
              .heads = q.shape()[2],
              .kv_heads = shape[2],
              .dim = shape[3],
              .capacity = capacity,
              .offset = offset,
              .position = position_arg(op, q, position, positions - shape[1] - offset + 1),
              .dtype = q.dtype(),
          });
  return y;
}

}  // namespace bnb::ops
