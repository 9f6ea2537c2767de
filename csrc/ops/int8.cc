// LLM.int8(): validation and allocation of the row quantizer, the integer product and the mixed linear layer.

#include "kernels/int8.h"

#include <cmath>

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

// The largest k whose sums of products of any int8 values fit an int32.
constexpr int64_t kMaxDepth = 131071;

void check_codes(const char* op, const char* name, const Tensor& t) {
  check_dtype_is(op, name, t, DType::int8);
  check_shape(t.ndim() >= 1, op, name, " must have at least one axis, got ", t.shape());
}

void check_stats(const char* op, const char* name, const Tensor& stats, int64_t rows) {
  check_dtype_is(op, name, stats, DType::float32);
  check_shape(stats.numel() == rows, op, name, " must have ", rows, " elements, got ", stats.numel());
}

void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& on, int64_t n) {
  if (!bias) return;
  check_float(op, "bias", *bias);
  check_shape_is(op, "bias", *bias, {n});
  check_same_device(op, on, *bias);
}

void check_weight(const char* op, const Tensor& x, const Tensor& codes, const Tensor& stats) {
  check_codes(op, "weightCodes", codes);
  check_shape(codes.ndim() == 2, op, "weightCodes must be a matrix [N, K], got ", codes.shape());
  check_stats(op, "weightStats", stats, codes.shape()[0]);
  check_same_device(op, x, codes, stats);
}

}  // namespace

std::tuple<Tensor, Tensor, std::optional<Tensor>> int8_quantize_rows(const Tensor& a, double threshold) {
  constexpr const char* op = "int8VectorwiseQuant";
  check_float(op, "A", a);
  check_shape(a.ndim() >= 1, op, "A must have at least one axis, got ", a.shape());
  check_option(threshold >= 0, op, "threshold must be at least 0, got ", threshold);
  const int64_t rows = a.shape().product(0, a.ndim() - 1), cols = a.shape()[-1];
  Tensor codes = Tensor::empty(a.shape(), DType::int8, a.device());
  Tensor stats = Tensor::empty({rows}, DType::float32, a.device());
  std::optional<Tensor> mask;
  if (threshold > 0) mask = Tensor::empty({cols}, DType::uint8, a.device());
  enqueue(kernels::int8_quantize_rows, a.device(),
          Int8QuantizeRowsArgs{.a = a.data(),
                               .codes = codes.ptr<int8_t>(),
                               .stats = stats.ptr<float>(),
                               .outlier_mask = mask ? mask->ptr<uint8_t>() : nullptr,
                               .rows = rows,
                               .cols = cols,
                               .threshold = static_cast<float>(threshold),
                               .dtype = a.dtype()});
  return {codes, stats, mask};
}

Tensor int8_dequantize_rows(const Tensor& codes, const Tensor& stats, const std::optional<Tensor>& ids, DType dtype) {
  const char* op = ids ? "embedding8bit" : "int8VectorwiseDequant";
  check_codes(op, "codes", codes);
  check_dtype(is_float(dtype), op, "the output must be float32, float16 or bfloat16");
  const int64_t table_rows = codes.shape().product(0, codes.ndim() - 1), cols = codes.shape()[-1];
  check_stats(op, "stats", stats, table_rows);
  check_same_device(op, codes, stats);
  Shape shape = codes.shape();
  if (ids) {
    check_dtype_is(op, "ids", *ids, DType::int32);
    check_same_device(op, codes, *ids);
    shape = ids->shape();
    shape.push_back(cols);
  }
  Tensor y = Tensor::empty(shape, dtype, codes.device());
  enqueue(kernels::int8_dequantize_rows, codes.device(),
          Int8DequantizeRowsArgs{.codes = codes.ptr<int8_t>(),
                                 .stats = stats.ptr<float>(),
                                 .ids = ids ? ids->ptr<int32_t>() : nullptr,
                                 .y = y.data(),
                                 .rows = ids ? ids->numel() : table_rows,
                                 .cols = cols,
                                 .table_rows = table_rows,
                                 .dtype = dtype,
                                 .fault = codes.device().fault()});
  return y;
}

Tensor int8_matmul(const Tensor& a, const Tensor& b) {
  constexpr const char* op = "int8LinearMatmul";
  check_codes(op, "A", a);
  check_codes(op, "B", b);
  check_same_device(op, a, b);
  const int64_t k = a.shape()[-1];
  check_shape(b.ndim() == 2 && b.shape()[1] == k, op, "B must have shape [N, ", k, "], got ", b.shape());
  check_shape(k <= kMaxDepth, op, "K must be at most ", kMaxDepth, " for an exact int32 sum, got ", k);
  Tensor c = Tensor::empty(a.shape().with_last(b.shape()[0]), DType::int32, a.device());
  enqueue(kernels::int8_matmul, a.device(),
          Int8MatmulArgs{.a = a.ptr<int8_t>(),
                         .b = b.ptr<int8_t>(),
                         .c = c.ptr<int32_t>(),
                         .m = a.shape().product(0, a.ndim() - 1),
                         .n = b.shape()[0],
                         .k = k});
  return c;
}

Tensor int8_dequantize_product(const Tensor& c, const Tensor& row_stats, const Tensor& col_stats,
                               const std::optional<Tensor>& bias, DType dtype) {
  constexpr const char* op = "int8MmDequant";
  check_dtype_is(op, "A", c, DType::int32);
  check_shape(c.ndim() >= 1, op, "A must have at least one axis, got ", c.shape());
  check_dtype(is_float(dtype), op, "dtype must be float32, float16 or bfloat16");
  const int64_t m = c.shape().product(0, c.ndim() - 1), n = c.shape()[-1];
  check_stats(op, "rowStats", row_stats, m);
  check_stats(op, "colStats", col_stats, n);
  check_same_device(op, c, row_stats, col_stats);
  check_bias(op, bias, c, n);
  Tensor y = Tensor::empty(c.shape(), dtype, c.device());
  enqueue(kernels::int8_dequantize_product, c.device(),
          Int8DequantizeProductArgs{.c = c.ptr<int32_t>(),
                                    .row_stats = row_stats.ptr<float>(),
                                    .col_stats = col_stats.ptr<float>(),
                                    .bias = bias ? bias->data() : nullptr,
                                    .y = y.data(),
                                    .m = m,
                                    .n = n,
                                    .dtype = dtype,
                                    .bias_dtype = bias ? bias->dtype() : DType::float32});
  return y;
}

Tensor int8_linear(const Tensor& x, const Tensor& weight_codes, const Tensor& weight_stats,
                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double threshold) {
  constexpr const char* op = "int8Linear";
  check_float(op, "x", x);
  check_weight(op, x, weight_codes, weight_stats);
  const int64_t n = weight_codes.shape()[0], k = weight_codes.shape()[1];
  check_shape(x.ndim() >= 1 && x.shape()[-1] == k, op, "the last axis of x must be ", k, ", got ", x.shape());
  check_bias(op, bias, x, n);
  if (weight) {
    check_float(op, "weight", *weight);
    check_shape_is(op, "weight", *weight, weight_codes.shape());
    check_same_device(op, x, *weight);
  }
  const auto [codes, stats, mask] = int8_quantize_rows(x, threshold);
  Tensor y = Tensor::empty(x.shape().with_last(n), x.dtype(), x.device());
  enqueue(kernels::int8_linear, x.device(),
          Int8LinearArgs{.x = x.data(),
                         .codes = codes.ptr<int8_t>(),
                         .stats = stats.ptr<float>(),
                         .outlier_mask = mask ? mask->ptr<uint8_t>() : nullptr,
                         .weight_codes = weight_codes.ptr<int8_t>(),
                         .weight_stats = weight_stats.ptr<float>(),
                         .weight = weight ? weight->data() : nullptr,
                         .bias = bias ? bias->data() : nullptr,
                         .y = y.data(),
                         .m = x.shape().product(0, x.ndim() - 1),
                         .n = n,
                         .k = k,
                         .dtype = x.dtype(),
                         .weight_dtype = weight ? weight->dtype() : DType::float32,
                         .bias_dtype = bias ? bias->dtype() : DType::float32});
  return y;
}

Tensor int8_linear_backward(const Tensor& dy, const Tensor& weight_codes, const Tensor& weight_stats) {
  constexpr const char* op = "int8LinearBackward";
  check_float(op, "dy", dy);
  check_weight(op, dy, weight_codes, weight_stats);
  const int64_t n = weight_codes.shape()[0], k = weight_codes.shape()[1];
  check_shape(dy.ndim() >= 1 && dy.shape()[-1] == n, op, "the last axis of dy must be ", n, ", got ", dy.shape());
  Tensor dx = Tensor::empty(dy.shape().with_last(k), dy.dtype(), dy.device());
  enqueue(kernels::int8_linear_backward, dy.device(),
          Int8LinearBackwardArgs{.dy = dy.data(),
                                 .weight_codes = weight_codes.ptr<int8_t>(),
                                 .weight_stats = weight_stats.ptr<float>(),
                                 .dx = dx.data(),
                                 .m = dy.shape().product(0, dy.ndim() - 1),
                                 .n = n,
                                 .k = k,
                                 .dtype = dy.dtype()});
  return dx;
}

}  // namespace bnb::ops
