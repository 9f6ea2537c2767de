// Elementwise ops: how two shapes broadcast, and how a gradient returns to the shape it came from.
#include "kernels/elementwise.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

constexpr const char* kUnaryName[] = {"neg", "abs",     "sign", "square", "reciprocal", "sqrt", "rsqrt",    "exp",
                                      "log", "sigmoid", "tanh", "relu",   "silu",       "gelu", "geluTanh", "pow"};
constexpr const char* kBinaryName[] = {"add", "sub", "mul", "div", "maximum", "minimum"};
constexpr int kUnaryCount = sizeof kUnaryName / sizeof *kUnaryName;
constexpr int kBinaryCount = sizeof kBinaryName / sizeof *kBinaryName;

const char* checked_name(UnaryOp op) {
  const int code = static_cast<int>(op);
  check_argument(code >= 0 && code < kUnaryCount, "unary", "unknown function ", code);
  return kUnaryName[code];
}
const char* checked_name(BinaryOp op) {
  const int code = static_cast<int>(op);
  check_argument(code >= 0 && code < kBinaryCount, "binary", "unknown function ", code);
  return kBinaryName[code];
}

// Axes along which a, b, or neither is repeated; neighbours of one kind are merged.
BroadcastAxes merge_axes(const Shape& out, const Shape& a, const Shape& b) {
  static_assert(kBroadcastAxes == kMaxAxes);
  BroadcastAxes axes{};
  for (int i = 0; i < out.ndim(); i++) {
    if (out[i] == 1) continue;
    const int ia = i - (out.ndim() - a.ndim()), ib = i - (out.ndim() - b.ndim());
    const int a_repeats = ia < 0 || a[ia] == 1, b_repeats = ib < 0 || b[ib] == 1;
    const int last = axes.ndim - 1;
    if (last >= 0 && (axes.a_repeats >> last & 1) == a_repeats && (axes.b_repeats >> last & 1) == b_repeats) {
      axes.dims[last] *= out[i];
    } else {
      const int k = axes.ndim++;
      axes.dims[k] = out[i];
      axes.a_repeats = static_cast<uint16_t>(axes.a_repeats | a_repeats << k);
      axes.b_repeats = static_cast<uint16_t>(axes.b_repeats | b_repeats << k);
    }
  }
  if (axes.ndim == 0) axes.dims[axes.ndim++] = 1;
  return axes;
}

}  // namespace

Tensor unary(UnaryOp op, const Tensor& x, double exponent) {
  check_float(checked_name(op), "x", x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::unary, x.device(),
          UnaryArgs{.x = x.data(), .y = y.data(), .n = x.numel(), .exponent = exponent, .op = op, .dtype = x.dtype()});
  return y;
}

Tensor unary_backward(UnaryOp op, const Tensor& dy, const Tensor& saved, double exponent) {
  const char* name = checked_name(op);
  check_float(name, "dy", dy);
  check_same_dtype(name, "dy", dy, "x", saved);
  check_shape_is(name, "dy", dy, saved.shape());
  check_same_device(name, dy, saved);
  Tensor dx = Tensor::empty(dy.shape(), dy.dtype(), dy.device());
  enqueue(kernels::unary_backward, dy.device(),
          UnaryBackwardArgs{.dy = dy.data(),
                            .saved = saved.data(),
                            .dx = dx.data(),
                            .n = dy.numel(),
                            .exponent = exponent,
                            .op = op,
                            .dtype = dy.dtype()});
  return dx;
}

Tensor binary(BinaryOp op, const Tensor& a, const std::optional<Tensor>& b, double number) {
  const char* name = checked_name(op);
  const bool integers = a.dtype() == DType::int32 && op != BinaryOp::div;
  check_dtype(is_float(a.dtype()) || integers, name, "a must be float32, float16",
              op == BinaryOp::div ? " or bfloat16" : ", bfloat16 or int32", ", got ", name_of(a.dtype()));
  Shape shape = a.shape();
  if (b) {
    check_same_dtype(name, "a", a, "b", *b);
    check_same_device(name, a, *b);
    if (!(b->shape() == shape)) shape = broadcast(name, a.shape(), b->shape());
  } else if (integers) {
    check_argument(number >= INT32_MIN && number <= INT32_MAX && number == static_cast<int32_t>(number), name,
                   "the number beside an int32 tensor must be an int32, got ", number);
  }
  Tensor y = Tensor::empty(shape, a.dtype(), a.device());
  if (y.numel() == 0) return y;
  enqueue(kernels::binary, a.device(),
          BinaryArgs{.a = a.data(),
                     .b = b ? b->data() : nullptr,
                     .y = y.data(),
                     .n = y.numel(),
                     .number = number,
                     .axes = merge_axes(shape, a.shape(), b ? b->shape() : shape),
                     .op = op,
                     .dtype = a.dtype()});
  return y;
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>> binary_backward(BinaryOp op, const Tensor& dy,
                                                                         const std::optional<Tensor>& a,
                                                                         const std::optional<Tensor>& b, double number,
                                                                         const Shape& a_shape, const Shape& b_shape,
                                                                         bool needs_a, bool needs_b) {
  const char* name = checked_name(op);
  check_float(name, "dy", dy);
  check_shape(broadcast(name, a_shape, b_shape) == dy.shape(), name, "dy must have the broadcast shape of a and b");
  const bool linear = op == BinaryOp::add || op == BinaryOp::sub;
  std::optional<Tensor> da, db;
  if (linear) {
    if (needs_a) da = sum_to(dy, a_shape, dy.dtype());
    if (needs_b) db = sum_to(dy, b_shape, dy.dtype());
    if (db && op == BinaryOp::sub) db = unary(UnaryOp::neg, *db, 0);
    return {da, db};
  }
  const bool needs_values = op != BinaryOp::mul;
  check_argument(a || !(needs_b || needs_values), name, "a must be given");
  if (a) {
    check_shape_is(name, "a", *a, a_shape);
    check_same_dtype(name, "dy", dy, "a", *a);
    check_same_device(name, dy, *a);
  }
  if (b) {
    check_shape_is(name, "b", *b, b_shape);
    check_same_dtype(name, "dy", dy, "b", *b);
    check_same_device(name, dy, *b);
  }
  // What is summed over broadcast axes stays float32 until the sum is done.
  const DType a_dtype = a_shape == dy.shape() ? dy.dtype() : DType::float32;
  const DType b_dtype = b_shape == dy.shape() ? dy.dtype() : DType::float32;
  if (needs_a) da = Tensor::empty(dy.shape(), a_dtype, dy.device());
  if (needs_b) db = Tensor::empty(dy.shape(), b_dtype, dy.device());
  if (dy.numel() != 0) {
    enqueue(kernels::binary_backward, dy.device(),
            BinaryBackwardArgs{.dy = dy.data(),
                               .a = a ? a->data() : nullptr,
                               .b = b ? b->data() : nullptr,
                               .da = da ? da->data() : nullptr,
                               .db = db ? db->data() : nullptr,
                               .n = dy.numel(),
                               .number = number,
                               .axes = merge_axes(dy.shape(), a_shape, b_shape),
                               .op = op,
                               .dtype = dy.dtype(),
                               .a_dtype = a_dtype,
                               .b_dtype = b_dtype});
  }
  if (da) da = sum_to(*da, a_shape, dy.dtype());
  if (db) db = sum_to(*db, b_shape, dy.dtype());
  return {da, db};
}

}  // namespace bnb::ops
