// min(max(x, low), high) and its gradient.

#include "kernels/clamp.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

void check_limits(const char* op, double low, double high) {
  check_argument(low <= high, op, "low must be at most high, got ", low, " and ", high);
}

}  // namespace

Tensor clamp(const Tensor& x, double low, double high) {
  check_float("clamp", "x", x);
  check_limits("clamp", low, high);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::clamp, x.device(),
          ClampArgs{.x = x.data(),
                    .y = y.data(),
                    .n = x.numel(),
                    .low = static_cast<float>(low),
                    .high = static_cast<float>(high),
                    .dtype = x.dtype()});
  return y;
}

Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high) {
  constexpr const char* op = "clampBackward";
  check_float(op, "x", x);
  check_limits(op, low, high);
  check_same_device(op, x, dy);
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape_is(op, "dy", dy, x.shape());
  Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::clamp_backward, x.device(),
          ClampBackwardArgs{.dy = dy.data(),
                            .x = x.data(),
                            .dx = dx.data(),
                            .n = x.numel(),
                            .low = static_cast<float>(low),
                            .high = static_cast<float>(high),
                            .dtype = x.dtype()});
  return dx;
}

}  // namespace bnb::ops
