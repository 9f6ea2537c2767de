// What the ops on pages of keys and values check of a layer and of a rule for scores.
#pragma once
#include "kernels/pages.h"
#include "kernels/score_rule.h"
#include "ops/validate.h"

namespace bnb::ops {

// keys and values [pages, kvHeads, 16, dim] for heads of `dim` elements, and their scales when they are int8.
inline KvPages check_layer(const char* op, const Tensor& q, int64_t dim, const Tensor& keys, const Tensor& values,
                           const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales) {
  check_same_device(op, q, keys, values);
  check_dtype(is_float(keys.dtype()) || keys.dtype() == DType::int8, op,
              "keys must be float32, float16, bfloat16 or int8, got ", name_of(keys.dtype()));
  check_same_dtype(op, "keys", keys, "values", values);
  const Shape& shape = keys.shape();
  check_shape(keys.ndim() == 4 && shape[1] >= 1 && shape[2] == kPageRows && shape[3] == dim, op,
              "keys must have the shape [pages, kvHeads, ", kPageRows, ", ", dim, "], got ", shape);
  check_shape_is(op, "values", values, shape);
  const bool codes = keys.dtype() == DType::int8;
  const auto check_scales = [&](const char* name, const std::optional<Tensor>& scales) {
    check_argument(scales.has_value() == codes, op, name,
                   codes ? " must be given for int8 pages" : " go with int8 pages only, got pages of ",
                   codes ? "" : name_of(keys.dtype()));
    if (!scales) return;
    check_same_device(op, q, *scales);
    check_dtype_is(op, name, *scales, DType::float32);
    check_shape_is(op, name, *scales, shape.without_last());
  };
  check_scales("keyScales", key_scales);
  check_scales("valueScales", value_scales);
  return {.keys = keys.data(),
          .values = values.data(),
          .key_scales = key_scales ? key_scales->ptr<float>() : nullptr,
          .value_scales = value_scales ? value_scales->ptr<float>() : nullptr,
          .pages = shape[0],
          .kv_heads = shape[1],
          .dim = dim,
          .dtype = keys.dtype()};
}

// An int32 tensor [n] beside q.
inline void check_plan(const char* op, const Tensor& q, const char* name, const Tensor& x, int64_t n) {
  check_same_device(op, q, x);
  check_dtype_is(op, name, x, DType::int32);
  check_shape_is(op, name, x, {n});
}

inline ScoreRule check_rule(const char* op, const Tensor& q, int64_t heads, float scale, int64_t window, float softcap,
                            const std::optional<Tensor>& sinks) {
  check_option(window >= 0, op, "window must be at least 1, got ", window);
  check_option(softcap >= 0, op, "softcap must be above 0, got ", softcap);
  if (sinks) {
    check_same_device(op, q, *sinks);
    check_dtype_is(op, "sinks", *sinks, DType::float32);
    check_shape_is(op, "sinks", *sinks, {heads});
  }
  return {.sinks = sinks ? sinks->ptr<float>() : nullptr, .window = window, .scale = scale, .softcap = softcap};
}

}  // namespace bnb::ops
