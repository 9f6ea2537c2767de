// Rows of a 4-bit table.

#include "kernels/embedding_4bit.h"

#include "ops/ops.h"
#include "ops/quantized_view.h"
#include "ops/validate.h"

namespace bnb::ops {

Tensor embedding_4bit(const Tensor& ids, const Quantized4Bit& weight, DType dtype) {
  constexpr const char* op = "embedding4bit";
  check_shape(weight.shape.ndim() == 2, op, "weight must be a matrix [rows, columns], got ", weight.shape);
  check_dtype_is(op, "ids", ids, DType::int32);
  check_dtype(is_float(dtype), op, "dtype must be float32, float16 or bfloat16, got ", static_cast<int>(dtype));
  check_same_device(op, ids, weight.packed);
  Shape shape = ids.shape();
  shape.push_back(weight.shape[1]);
  const Tensor y = Tensor::empty(shape, dtype, ids.device());
  enqueue(kernels::embedding_4bit, ids.device(),
          Embedding4BitArgs{.ids = ids.ptr<const int32_t>(),
                            .y = y.data(),
                            .w = weight_view(weight),
                            .count = ids.numel(),
                            .rows = weight.shape[0],
                            .cols = weight.shape[1],
                            .dtype = dtype,
                            .fault = ids.device().fault()});
  return y;
}

}  // namespace bnb::ops
