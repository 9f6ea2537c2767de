// What several adapters add to the rows of a linear layer, each to its own.

#include "kernels/lora_rows.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor lora_rows(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, const Tensor& segment) {
  constexpr const char* op = "loraRows";
  check_float(op, "y", y);
  check_same_dtype(op, "y", y, "x", x);
  check_same_dtype(op, "y", y, "a", a);
  check_same_dtype(op, "y", y, "b", b);
  check_indices(op, "segment", segment);
  check_same_device(op, y, x, a, b, segment);
  check_shape(a.ndim() == 3, op, "a must have three axes [adapters, rank, inputs], got ", a.shape());
  check_shape(y.ndim() >= 1, op, "y must have at least one axis, got ", y.shape());
  const int64_t adapters = a.shape()[0], rank = a.shape()[1], inputs = a.shape()[2], outputs = y.shape()[-1];
  check_shape_is(op, "x", x, y.shape().with_last(inputs));
  check_shape_is(op, "b", b, {adapters, rank, outputs});
  check_shape_is(op, "segment", segment, {adapters + 1});
  Tensor z = Tensor::empty(y.shape(), y.dtype(), y.device());
  enqueue(kernels::lora_rows, y.device(),
          LoraRowsArgs{.y = y.data(),
                       .x = x.data(),
                       .a = a.data(),
                       .b = b.data(),
                       .segment = segment.ptr<int32_t>(),
                       .z = z.data(),
                       .rows = y.shape().product(0, -1),
                       .inputs = inputs,
                       .outputs = outputs,
                       .rank = rank,
                       .adapters = adapters,
                       .dtype = y.dtype()});
  return z;
}

}  // namespace bnb::ops
