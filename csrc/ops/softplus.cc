// log(1 + exp(beta x)) / beta and its gradient.

#include "kernels/softplus.h"

#include <cmath>

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

void check_numbers(const char* op, double beta, double threshold) {
  // As the kernels see them: a tiny beta is 0 in float32.
  const float b = static_cast<float>(beta);
  check_argument(std::isfinite(b) && b != 0, op, "beta must be finite and not 0, got ", beta);
  check_argument(!std::isnan(threshold), op, "threshold must be a number, got ", threshold);
}

}  // namespace

Tensor softplus(const Tensor& x, double beta, double threshold) {
  check_float("softplus", "x", x);
  check_numbers("softplus", beta, threshold);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::softplus, x.device(),
          SoftplusArgs{.x = x.data(),
                       .y = y.data(),
                       .n = x.numel(),
                       .beta = static_cast<float>(beta),
                       .threshold = static_cast<float>(threshold),
                       .dtype = x.dtype()});
  return y;
}

Tensor softplus_backward(const Tensor& dy, const Tensor& x, double beta, double threshold) {
  constexpr const char* op = "softplusBackward";
  check_float(op, "x", x);
  check_numbers(op, beta, threshold);
  check_same_device(op, x, dy);
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape_is(op, "dy", dy, x.shape());
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::softplus_backward, x.device(),
          SoftplusBackwardArgs{.dy = dy.data(),
                               .x = x.data(),
                               .dx = dx.data(),
                               .n = x.numel(),
                               .beta = static_cast<float>(beta),
                               .threshold = static_cast<float>(threshold),
                               .dtype = x.dtype()});
  return dx;
}

}  // namespace bnb::ops
