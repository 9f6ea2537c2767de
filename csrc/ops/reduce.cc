// Reductions over one axis or over all, and the sum that undoes a broadcast.
#include "kernels/reduce.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

constexpr const char* kName[] = {"sum", "mean", "max", "min"};

const char* checked_name(ReduceOp op) {
  const int code = static_cast<int>(op);
  check_argument(code >= 0 && code < 4, "reduce", "unknown reduction ", code);
  return kName[code];
}

// x as [outer, n, inner] around the reduced axis, and the shape of the result.
struct Plan {
  int64_t outer = 1, n, inner = 1;
  Shape shape;
};

Plan plan_for(const char* op, const Shape& x, bool all, int32_t axis, bool keep_dims) {
  Plan p;
  if (all) {
    p.n = x.numel();
    for (int i = 0; keep_dims && i < x.ndim(); i++) p.shape.push_back(1);
    return p;
  }
  check_shape(axis >= -x.ndim() && axis < x.ndim(), op, "axis must be in [-", x.ndim(), ", ", x.ndim(), "), got ",
              axis);
  const int at = axis < 0 ? axis + x.ndim() : axis;
  p.outer = x.product(0, at);
  p.n = x[at];
  p.inner = x.product(at + 1, x.ndim());
  for (int i = 0; i < x.ndim(); i++) {
    if (i != at) p.shape.push_back(x[i]);
    if (i == at && keep_dims) p.shape.push_back(1);
  }
  return p;
}

Tensor reduce_as(ReduceOp op, const Tensor& x, int64_t outer, int64_t n, int64_t inner, const Shape& shape,
                 DType dtype) {
  Tensor y = Tensor::empty(shape, dtype, x.device());
  if (y.numel() == 0) return y;
  enqueue(kernels::reduce, x.device(),
          ReduceArgs{.x = x.data(),
                     .y = y.data(),
                     .outer = outer,
                     .n = n,
                     .inner = inner,
                     .op = op,
                     .dtype = x.dtype(),
                     .y_dtype = dtype});
  return y;
}

}  // namespace

Tensor reduce(ReduceOp op, const Tensor& x, bool all, int32_t axis, bool keep_dims) {
  const char* name = checked_name(op);
  check_float(name, "x", x);
  const Plan p = plan_for(name, x.shape(), all, axis, keep_dims);
  const bool extreme = op == ReduceOp::max || op == ReduceOp::min;
  check_shape(!extreme || p.n > 0 || p.shape.numel() == 0, name, "the reduced axis must not be empty, got ", x.shape());
  return reduce_as(op, x, p.outer, p.n, p.inner, p.shape, x.dtype());
}

Tensor argmax(const Tensor& x, bool all, int32_t axis, bool keep_dims) {
  check_float("argmax", "x", x);
  const Plan p = plan_for("argmax", x.shape(), all, axis, keep_dims);
  check_shape(p.n > 0 || p.shape.numel() == 0, "argmax", "the reduced axis must not be empty, got ", x.shape());
  check_shape(p.n <= INT32_MAX, "argmax", "the reduced axis must have at most 2^31 - 1 elements, got ", x.shape());
  Tensor y = Tensor::empty(p.shape, DType::int32, x.device());
  if (y.numel() == 0) return y;
  enqueue(kernels::argmax, x.device(),
          ArgmaxArgs{
              .x = x.data(), .y = y.ptr<int32_t>(), .outer = p.outer, .n = p.n, .inner = p.inner, .dtype = x.dtype()});
  return y;
}

Tensor reduce_backward(ReduceOp op, const Tensor& dy, const std::optional<Tensor>& x, const std::optional<Tensor>& y,
                       const Shape& shape, bool all, int32_t axis) {
  const char* name = checked_name(op);
  check_float(name, "dy", dy);
  const Plan p = plan_for(name, shape, all, axis, false);
  check_shape(dy.numel() == p.shape.numel(), name, "dy must have ", p.shape.numel(), " elements, got ", dy.shape());
  const bool extreme = op == ReduceOp::max || op == ReduceOp::min;
  if (extreme) {
    check_argument(x && y, name, "x and y must be given");
    check_shape_is(name, "x", *x, shape);
    check_shape_is(name, "dy", dy, y->shape());
    check_same_dtype(name, "dy", dy, "x", *x);
    check_same_dtype(name, "dy", dy, "y", *y);
    check_same_device(name, dy, *x, *y);
  }
  Tensor dx = Tensor::empty(shape, dy.dtype(), dy.device());
  if (dx.numel() == 0) return dx;
  enqueue(kernels::reduce_backward, dy.device(),
          ReduceBackwardArgs{.dy = dy.data(),
                             .x = extreme ? x->data() : nullptr,
                             .y = extreme ? y->data() : nullptr,
                             .dx = dx.data(),
                             .outer = p.outer,
                             .n = p.n,
                             .inner = p.inner,
                             .op = op,
                             .dtype = dy.dtype()});
  return dx;
}

Tensor sum_to(const Tensor& x, const Shape& shape, DType dtype) {
  constexpr const char* op = "sumTo";
  check_float(op, "x", x);
  check_dtype(is_float(dtype), op, "the sum must be float32, float16 or bfloat16, got ", name_of(dtype));
  check_shape(shape.ndim() <= x.ndim(), op, "shape ", shape, " must broadcast to ", x.shape());
  if (shape == x.shape() && dtype == x.dtype()) return x;

  // x as groups of neighbouring axes that are summed or kept, in turn.
  int64_t size[kMaxAxes] = {};
  bool summed[kMaxAxes] = {};
  int groups = 0;
  for (int i = 0; i < x.ndim(); i++) {
    const int at = i - (x.ndim() - shape.ndim());
    const int64_t want = at < 0 ? 1 : shape[at];
    check_shape(want == x.shape()[i] || want == 1, op, "shape ", shape, " must broadcast to ", x.shape());
    if (x.shape()[i] == 1) continue;
    const bool is_summed = want == 1;
    if (groups == 0 || summed[groups - 1] != is_summed) {
      size[groups] = 1;
      summed[groups++] = is_summed;
    }
    size[groups - 1] *= x.shape()[i];
  }
  int left = 0;
  for (int g = 0; g < groups; g++) left += summed[g];
  Tensor result = x;
  if (left == 0) {
    // Only axes of size 1 differ, or the dtype does: a sum over one element rounds it.
    return dtype == x.dtype() ? x.view(shape) : reduce_as(ReduceOp::sum, x, x.numel(), 1, 1, shape, dtype);
  }
  for (int g = 0; g < groups; g++) {
    if (!summed[g]) continue;
    int64_t outer = 1, inner = 1;
    for (int k = 0; k < g; k++) outer *= size[k];
    for (int k = g + 1; k < groups; k++) inner *= size[k];
    const bool is_last = --left == 0;
    result = reduce_as(ReduceOp::sum, result, outer, size[g], inner, is_last ? shape : Shape{outer * inner},
                       is_last ? dtype : DType::float32);
    size[g] = 1;
  }
  return result;
}

}  // namespace bnb::ops
