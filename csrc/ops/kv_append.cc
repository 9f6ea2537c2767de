// Queries turned, and keys and values on their way into the pages of a layer.
#include "kernels/kv_append.h"

#include "ops/ops.h"
#include "ops/pages.h"

namespace bnb::ops {

Tensor kv_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values,
                 const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                 const Tensor& slots, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                 const std::optional<Tensor>& positions) {
  constexpr const char* op = "kvAppend";
  check_float(op, "q", q);
  check_same_dtype(op, "q", q, "k", k);
  check_same_dtype(op, "q", q, "v", v);
  check_same_device(op, q, k, v);
  const Shape& shape = q.shape();
  check_shape(q.ndim() == 3 && shape[2] >= 1, op, "q must have three axes [tokens, heads, dim], got ", shape);
  const int64_t tokens = shape[0], dim = shape[2];
  const KvPages layer = check_layer(op, q, dim, keys, values, key_scales, value_scales);
  check_shape_is(op, "k", k, {tokens, layer.kv_heads, dim});
  check_shape_is(op, "v", v, k.shape());
  check_plan(op, q, "slots", slots, tokens);
  Angles angles = {};
  if (cos && sin && positions) {
    angles = check_angles(op, q, *cos, *sin, dim);
    check_plan(op, q, "positions", *positions, tokens);
  }
  check_apart(op, "keys", keys, "values", values);
  for (const Tensor* pages : {&keys, &values})
    for (const Tensor* read : {&q, &k, &v}) check_apart(op, "keys and values", *pages, "q, k or v", *read);
  if (key_scales) key_scales->changed(), value_scales->changed();
  keys.changed(), values.changed();
  Tensor y = Tensor::empty(shape, q.dtype(), q.device());
  enqueue(kernels::kv_append, q.device(),
          KvAppendArgs{.q = q.data(),
                       .k = k.data(),
                       .v = v.data(),
                       .slots = slots.ptr<int32_t>(),
                       .y = y.data(),
                       .layer = layer,
                       .angles = angles,
                       .positions = positions ? positions->ptr<int32_t>() : nullptr,
                       .tokens = tokens,
                       .heads = shape[1],
                       .dtype = q.dtype(),
                       .fault = q.device().fault()});
  return y;
}

}  // namespace bnb::ops
