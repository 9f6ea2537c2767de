// Rows of a table by id, the gradient of the table, and the scaling of its rows to a maximal norm.

#include "kernels/embedding.h"

#include "ops/ops.h"
#include "ops/validate.h"

namespace bnb::ops {

namespace {

void check_table(const char* op, const Tensor& weight) {
  check_float(op, "weight", weight);
  check_shape(weight.ndim() == 2, op, "weight must have two axes, got ", weight.shape());
}

}  // namespace

Tensor embedding(const Tensor& ids, const Tensor& weight) {
  check_indices("embedding", "ids", ids);
  check_table("embedding", weight);
  check_same_device("embedding", ids, weight);
  const int64_t cols = weight.shape()[1];
  Shape shape = ids.shape();
  shape.push_back(cols);
  Tensor y = Tensor::empty(shape, weight.dtype(), weight.device());
  enqueue(kernels::embedding, weight.device(),
          EmbeddingArgs{
              .ids = ids.ptr<int32_t>(),
              .weight = weight.data(),
              .y = y.data(),
              .count = ids.numel(),
              .rows = weight.shape()[0],
              .row_bytes = cols * static_cast<int64_t>(size_of(weight.dtype())),
              .fault = weight.device().fault(),
          });
  return y;
}

Tensor embedding_backward(const Tensor& dy, const Tensor& ids, int64_t rows, int64_t padding, bool scale_by_frequency) {
  constexpr const char* op = "embeddingBackward";
  check_indices(op, "ids", ids);
  check_float(op, "dy", dy);
  check_same_device(op, dy, ids);
  Shape expected = ids.shape();
  expected.push_back(dy.ndim() > 0 ? dy.shape()[-1] : 0);
  check_shape_is(op, "dy", dy, expected);
  check_option(rows >= 0 && padding >= -1 && padding < rows, op, "padding must be -1 or a row below ", rows, ", got ",
               padding);
  const int64_t cols = dy.shape()[-1];
  Tensor dweight = Tensor::empty({rows, cols}, dy.dtype(), dy.device());
  enqueue(kernels::embedding_backward, dy.device(),
          EmbeddingBackwardArgs{
              .ids = ids.ptr<int32_t>(),
              .dy = dy.data(),
              .dweight = dweight.data(),
              .count = ids.numel(),
              .rows = rows,
              .cols = cols,
              .padding = padding,
              .scale_by_frequency = scale_by_frequency,
              .dtype = dy.dtype(),
          });
  return dweight;
}

void embedding_renorm(const Tensor& ids, const Tensor& weight, float max_norm, float p) {
  constexpr const char* op = "embeddingRenorm";
  check_indices(op, "ids", ids);
  check_table(op, weight);
  check_same_device(op, ids, weight);
  check_option(max_norm >= 0, op, "maxNorm must not be negative, got ", max_norm);
  check_option(p > 0, op, "normType must be positive, got ", p);
  enqueue(kernels::embedding_renorm, weight.device(),
          EmbeddingRenormArgs{
              .ids = ids.ptr<int32_t>(),
              .weight = weight.changed().data(),
              .count = ids.numel(),
              .rows = weight.shape()[0],
              .cols = weight.shape()[1],
              .max_norm = max_norm,
              .p = p,
              .dtype = weight.dtype(),
              .fault = weight.device().fault(),
          });
}

}  // namespace bnb::ops
