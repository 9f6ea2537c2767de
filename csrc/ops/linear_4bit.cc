// y = x @ dequantize(w)^T + bias + residual without ever writing the dequantized weight to memory, for one weight or
// for several of one x, and its gradient for x.

#include "kernels/linear_4bit.h"

#include <cstdlib>
#include <string_view>

#include "kernels/plan/linear_4bit.h"
#include "kernels/plan/linear_4bit_cpu.h"
#include "kernels/reduce.h"
#include "ops/ops.h"
#include "ops/quantized_view.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

void check_matrix(const char* op, const Quantized4Bit& w) {
  check_shape(w.shape.ndim() == 2, op, "weight must be a matrix [outFeatures, inFeatures], got ", w.shape);
}

// The variant in BNB_PLAN_LINEAR_4BIT, for tests and measurements; -1 lets the plan choose. Read at every call, on the
// thread whose process.env it is.
int32_t forced_variant(const char* op, const Device& device) {
  if (device.type() == DeviceType::cpu) return -1;
  const char* text = std::getenv("BNB_PLAN_LINEAR_4BIT");
  if (!text || !*text) return -1;
  for (int32_t i = 0; i < 4; i++)
    if (kLinear4BitVariants[i] == std::string_view(text)) return i;
  fail(Code::option, op, "BNB_PLAN_LINEAR_4BIT must be simt, small_m, tile or dense, got ", text);
}

void product(const char* op, const Tensor& x, const Quantized4Bit& w, const std::optional<Tensor>& bias,
             const std::optional<Tensor>& residual, const Tensor& y) {
  const int64_t m = x.shape().product(0, -1), n = w.shape[0], k = w.shape[1];
  enqueue(kernels::linear_4bit, x.device(),
          Linear4BitArgs{.x = x.data(),
                         .bias = bias ? bias->data() : nullptr,
                         .residual = residual ? residual->data() : nullptr,
                         .y = y.data(),
                         .w = weight_view(w),
                         .m = m,
                         .n = n,
                         .k = k,
                         .dtype = x.dtype(),
                         .bias_dtype = bias ? bias->dtype() : DType::float32,
                         .y_dtype = y.dtype(),
                         .plan = plan_linear_4bit(m, k),
                         .variant = forced_variant(op, x.device())});
}

// Checks the operands and gives the shape of y.
Shape check_product(const char* op, const Tensor& x, const Quantized4Bit& w, const std::optional<Tensor>& bias) {
  check_matrix(op, w);
  check_float(op, "x", x);
  check_same_device(op, x, w.packed);
  const int64_t n = w.shape[0], k = w.shape[1];
  check_shape(x.ndim() >= 1 && x.shape()[-1] == k, op, "the last axis of x must be ", k, ", got ", x.shape());
  if (bias) {
    check_float(op, "bias", *bias);
    check_same_device(op, x, *bias);
    check_shape_is(op, "bias", *bias, {n});
  }
  return x.shape().with_last(n);
}

// Two weights, without results.
Linear4BitGroupArgs group_args(const char* op, const Tensor& x, const Quantized4Bit& first,
                               const Quantized4Bit& second) {
  const int64_t m = x.shape().product(0, -1), k = x.shape()[-1];
  return {.x = x.data(),
          .y = {},
          .w = {weight_view(first), weight_view(second), {}},
          .n = {first.shape[0], second.shape[0], 0},
          .m = m,
          .k = k,
          .count = 2,
          .swiglu = false,
          .dtype = x.dtype(),
          .plan = plan_linear_4bit(m, k),
          .variant = forced_variant(op, x.device())};
}

}  // namespace

Tensor linear_4bit(const Tensor& x, const Quantized4Bit& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual) {
  constexpr const char* op = "linear4bit";
  const Shape shape = check_product(op, x, weight, bias);
  if (residual) {
    check_same_device(op, x, *residual);
    check_same_dtype(op, "x", x, "residual", *residual);
    check_shape_is(op, "residual", *residual, shape);
  }
  const Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  product(op, x, weight, bias, residual, y);
  return y;
}

std::tuple<Tensor, Tensor, std::optional<Tensor>> linear_4bit_each(const Tensor& x, const Quantized4Bit& first,
                                                                   const Quantized4Bit& second,
                                                                   const std::optional<Quantized4Bit>& third) {
  constexpr const char* op = "linear4bitEach";
  const auto result = [&](const Quantized4Bit& w) {
    return Tensor::empty(check_product(op, x, w, std::nullopt), x.dtype(), x.device());
  };
  const Tensor y0 = result(first), y1 = result(second);
  const std::optional<Tensor> y2 = third ? std::optional<Tensor>(result(*third)) : std::nullopt;
  Linear4BitGroupArgs args = group_args(op, x, first, second);
  args.y[0] = y0.data();
  args.y[1] = y1.data();
  if (third) {
    args.y[2] = y2->data();
    args.w[2] = weight_view(*third);
    args.n[2] = third->shape[0];
    args.count = 3;
  }
  enqueue(kernels::linear_4bit_group, x.device(), args);
  return {y0, y1, y2};
}

Tensor linear_4bit_swiglu(const Tensor& x, const Quantized4Bit& gate, const Quantized4Bit& up) {
  constexpr const char* op = "linear4bitSwiglu";
  const Shape shape = check_product(op, x, gate, std::nullopt);
  check_product(op, x, up, std::nullopt);
  check_shape(gate.shape[0] == up.shape[0], op, "gate and up must have as many outputs, got ", gate.shape, " and ",
              up.shape);
  const Tensor y = Tensor::empty(shape, x.dtype(), x.device());
  Linear4BitGroupArgs args = group_args(op, x, gate, up);
  args.y[0] = y.data();
  args.swiglu = true;
  enqueue(kernels::linear_4bit_group, x.device(), args);
  return y;
}

void linear_4bit_into(const Tensor& x, const Quantized4Bit& weight, const std::optional<Tensor>& bias,
                      const Tensor& out) {
  constexpr const char* op = "linear4bitInto";
  const Shape shape = check_product(op, x, weight, bias);
  check_float(op, "out", out);
  check_same_device(op, x, out);
  check_shape_is(op, "out", out, shape);
  check_apart(op, "out", out, "x", x);
  check_apart(op, "out", out, "weight", weight.packed);
  check_apart_from_scales(op, "out", out, weight.scales);
  if (bias) check_apart(op, "out", out, "bias", *bias);
  product(op, x, weight, bias, std::nullopt, out.changed());
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> linear_4bit_backward(const Tensor& dy,
                                                                              const Quantized4Bit& weight,
                                                                              DType bias_dtype, bool needs_x,
                                                                              bool needs_bias) {
  constexpr const char* op = "linear4bitBackward";
  check_matrix(op, weight);
  check_float(op, "dy", dy);
  check_dtype(is_float(bias_dtype), op, "the bias must be float32, float16 or bfloat16");
  check_same_device(op, dy, weight.packed);
  const int64_t n = weight.shape[0], k = weight.shape[1];
  check_shape(dy.ndim() >= 1 && dy.shape()[-1] == n, op, "the last axis of dy must be ", n, ", got ", dy.shape());
  const int64_t m = dy.shape().product(0, -1);
  std::optional<Tensor> dx, dbias;
  if (needs_x) {
    dx = Tensor::empty(dy.shape().with_last(k), dy.dtype(), dy.device());
    enqueue(kernels::linear_4bit_backward, dy.device(),
            Linear4BitBackwardArgs{.dy = dy.data(),
                                   .dx = dx->data(),
                                   .w = weight_view(weight),
                                   .m = m,
                                   .n = n,
                                   .k = k,
                                   .dtype = dy.dtype(),
                                   .plan = plan_linear_4bit_backward(k),
                                   .variant = forced_variant(op, dy.device())});
  }
  if (needs_bias) {
    dbias = Tensor::empty({n}, bias_dtype, dy.device());
    enqueue(kernels::reduce, dy.device(),
            ReduceArgs{.x = dy.data(),
                       .y = dbias->data(),
                       .outer = 1,
                       .n = m,
                       .inner = n,
                       .op = ReduceOp::sum,
                       .dtype = dy.dtype(),
                       .y_dtype = bias_dtype});
  }
  return {dx, dbias};
}

}  // namespace bnb::ops
