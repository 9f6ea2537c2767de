// Root-mean-square normalization over the last axis, and its gradient.

#include "kernels/rms_norm.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

namespace {

void check_rms_norm(const char* op, const Tensor& x, const Tensor& weight) {
  check_float(op, "x", x);
  check_same_device(op, x, weight);
  check_shape(x.ndim() >= 1, op, "x must have at least one axis, got ", x.shape());
  check_shape_is(op, "weight", weight, {x.shape()[-1]});
  check_same_dtype(op, "x", x, "weight", weight);
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, float eps) {
  check_rms_norm("rmsNorm", x, weight);
  check_option(eps >= 0, "rmsNorm", "eps must not be negative, got ", eps);
  const int64_t rows = x.shape().product(0, -1);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  Tensor rstd = Tensor::empty({rows}, DType::float32, x.device());
  enqueue(kernels::rms_norm, x.device(),
          RmsNormArgs{
              .x = x.data(),
              .weight = weight.data(),
              .y = y.data(),
              .rstd = rstd.ptr<float>(),
              .rows = rows,
              .cols = x.shape()[-1],
              .eps = eps,
              .dtype = x.dtype(),
          });
  return {y, rstd};
}

std::tuple<Tensor, std::optional<Tensor>> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                            const Tensor& rstd, bool wants_weight) {
  constexpr const char* op = "rmsNormBackward";
  check_rms_norm(op, x, weight);
  check_same_device(op, x, dy, rstd);
  const int64_t rows = x.shape().product(0, -1);
  check_shape_is(op, "dy", dy, x.shape());
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape_is(op, "rstd", rstd, {rows});
  check_dtype_is(op, "rstd", rstd, DType::float32);
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  std::optional<Tensor> dweight;
  if (wants_weight) dweight = Tensor::empty(weight.shape(), x.dtype(), x.device());
  enqueue(kernels::rms_norm_backward, x.device(),
          RmsNormBackwardArgs{
              .dy = dy.data(),
              .x = x.data(),
              .weight = weight.data(),
              .rstd = rstd.ptr<float>(),
              .dx = dx.data(),
              .dweight = dweight ? dweight->data() : nullptr,
              .rows = rows,
              .cols = x.shape()[-1],
              .dtype = x.dtype(),
          });
  return {dx, dweight};
}

}  // namespace bnb::ops
