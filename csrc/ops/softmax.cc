// softmax and logSoftmax over the last axis.
#include "kernels/softmax.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor softmax(const Tensor& x, bool log) {
  const char* op = log ? "logSoftmax" : "softmax";
  check_float(op, "x", x);
  check_shape(x.ndim() >= 1, op, "x must have at least one axis, got ", x.shape());
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (x.numel() == 0) return y;
  enqueue(kernels::softmax, x.device(),
          SoftmaxArgs{.x = x.data(),
                      .y = y.data(),
                      .rows = x.shape().product(0, -1),
                      .cols = x.shape()[-1],
                      .dtype = x.dtype(),
                      .log = log});
  return y;
}

Tensor softmax_backward(const Tensor& y, const Tensor& dy, bool log) {
  constexpr const char* op = "softmaxBackward";
  check_float(op, "y", y);
  check_same_device(op, y, dy);
  check_same_dtype(op, "y", y, "dy", dy);
  check_shape_is(op, "dy", dy, y.shape());
  Tensor dx = Tensor::empty(y.shape(), y.dtype(), y.device());
  if (y.numel() == 0) return dx;
  enqueue(kernels::softmax_backward, y.device(),
          SoftmaxBackwardArgs{.y = y.data(),
                              .dy = dy.data(),
                              .dx = dx.data(),
                              .rows = y.shape().product(0, -1),
                              .cols = y.shape()[-1],
                              .dtype = y.dtype(),
                              .log = log});
  return dx;
}

}  // namespace bnb::ops
