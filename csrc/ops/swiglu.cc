// silu(gate) * up in one pass, and its gradient.

#include "kernels/swiglu.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

namespace {

void check_like_gate(const char* op, const char* name, const Tensor& gate, const Tensor& t) {
  check_same_device(op, gate, t);
  check_shape_is(op, name, t, gate.shape());
  check_same_dtype(op, "gate", gate, name, t);
}

}  // namespace

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  check_float("swiglu", "gate", gate);
  check_like_gate("swiglu", "up", gate, up);
  Tensor y = Tensor::empty(gate.shape(), gate.dtype(), gate.device());
  enqueue(kernels::swiglu, gate.device(),
          SwigluArgs{
              .gate = gate.data(),
              .up = up.data(),
              .y = y.data(),
              .size = gate.numel(),
              .dtype = gate.dtype(),
          });
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  check_float("swigluBackward", "gate", gate);
  check_like_gate("swigluBackward", "up", gate, up);
  check_like_gate("swigluBackward", "dy", gate, dy);
  Tensor dgate = Tensor::empty(gate.shape(), gate.dtype(), gate.device());
  Tensor dup = Tensor::empty(gate.shape(), gate.dtype(), gate.device());
  enqueue(kernels::swiglu_backward, gate.device(),
          SwigluBackwardArgs{
              .dy = dy.data(),
              .gate = gate.data(),
              .up = up.data(),
              .dgate = dgate.data(),
              .dup = dup.data(),
              .size = gate.numel(),
              .dtype = gate.dtype(),
          });
  return {dgate, dup};
}

}  // namespace bnb::ops
