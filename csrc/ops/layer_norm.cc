// Layer normalization over the last axis with optional weight and bias, and its gradient.

#include "kernels/layer_norm.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

namespace {

void check_row(const char* op, const char* name, const Tensor& x, const std::optional<Tensor>& row) {
  if (!row) return;
  check_same_device(op, x, *row);
  check_shape_is(op, name, *row, {x.shape()[-1]});
  check_same_dtype(op, "x", x, name, *row);
}

const void* data_or_null(const std::optional<Tensor>& t) { return t ? t->data() : nullptr; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, float eps) {
  constexpr const char* op = "layerNorm";
  check_float(op, "x", x);
  check_shape(x.ndim() >= 1, op, "x must have at least one axis, got ", x.shape());
  check_row(op, "weight", x, weight);
  check_row(op, "bias", x, bias);
  check_option(eps >= 0, op, "eps must not be negative, got ", eps);
  const int64_t rows = x.shape().product(0, -1);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  Tensor mean = Tensor::empty({rows}, DType::float32, x.device());
  Tensor rstd = Tensor::empty({rows}, DType::float32, x.device());
  enqueue(kernels::layer_norm, x.device(),
          LayerNormArgs{
              .x = x.data(),
              .weight = data_or_null(weight),
              .bias = data_or_null(bias),
              .y = y.data(),
              .mean = mean.ptr<float>(),
              .rstd = rstd.ptr<float>(),
              .rows = rows,
              .cols = x.shape()[-1],
              .eps = eps,
              .dtype = x.dtype(),
          });
  return {y, mean, rstd};
}

std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> layer_norm_backward(
    const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& rstd,
    bool wants_weight, bool wants_bias) {
  constexpr const char* op = "layerNormBackward";
  check_float(op, "x", x);
  check_same_device(op, x, dy, mean, rstd);
  check_shape(x.ndim() >= 1, op, "x must have at least one axis, got ", x.shape());
  check_shape_is(op, "dy", dy, x.shape());
  check_same_dtype(op, "x", x, "dy", dy);
  check_row(op, "weight", x, weight);
  const int64_t rows = x.shape().product(0, -1), cols = x.shape()[-1];
  check_shape_is(op, "mean", mean, {rows});
  check_shape_is(op, "rstd", rstd, {rows});
  check_dtype_is(op, "mean", mean, DType::float32);
  check_dtype_is(op, "rstd", rstd, DType::float32);
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  std::optional<Tensor> dweight, dbias;
  if (wants_weight) dweight = Tensor::empty({cols}, x.dtype(), x.device());
  if (wants_bias) dbias = Tensor::empty({cols}, x.dtype(), x.device());
  enqueue(kernels::layer_norm_backward, x.device(),
          LayerNormBackwardArgs{
              .dy = dy.data(),
              .x = x.data(),
              .weight = data_or_null(weight),
              .mean = mean.ptr<float>(),
              .rstd = rstd.ptr<float>(),
              .dx = dx.data(),
              .dweight = dweight ? dweight->data() : nullptr,
              .dbias = dbias ? dbias->data() : nullptr,
              .rows = rows,
              .cols = cols,
              .dtype = x.dtype(),
          });
  return {dx, dweight, dbias};
}

}  // namespace bnb::ops
