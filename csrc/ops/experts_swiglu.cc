// A mixture of experts, each a gated MLP: the table of their matrices, the sum of what each row chose, its gradients.

#include "kernels/experts_swiglu.h"

#include "core/transfer.h"
#include "ops/ops.h"
#include "ops/quantized_view.h"
#include "ops/validate.h"

namespace bnb::ops {
namespace {

const Shape& shape_of(const Matrix& m) {
  if (const auto* q = std::get_if<Quantized4Bit>(&m)) return q->shape;
  return std::get<Tensor>(m).shape();
}

const Tensor& elements_of(const Matrix& m) {
  if (const auto* q = std::get_if<Quantized4Bit>(&m)) return q->packed;
  return std::get<Tensor>(m);
}

Weight4Bit view_of(const Matrix& m) {
  if (const auto* q = std::get_if<Quantized4Bit>(&m)) return weight_view(*q);
  Weight4Bit view = {};
  view.packed = static_cast<const uint8_t*>(std::get<Tensor>(m).data());
  return view;
}

// A matrix must be like the first one in everything but its values.
void check_matrix(const char* op, const char* name, size_t i, const Matrix& m, const Matrix& first,
                  const Shape& shape) {
  const auto* tensor = std::get_if<Tensor>(&m);
  check_argument(m.index() == first.index(), op, name, "[", i, "] must be ",
                 tensor ? "quantized, as gates[0] is, got floats" : "floats, as gates[0] is, got a quantized weight");
  check_same_device(op, elements_of(first), elements_of(m));
  if (tensor) check_dtype_is(op, name, *tensor, std::get<Tensor>(first).dtype());
  check_shape(shape_of(m) == shape, op, name, "[", i, "] must have shape ", shape, ", got ", shape_of(m));
}

Tensor table_of(const std::vector<Matrix>& matrices) {
  std::vector<Weight4Bit> table;
  table.reserve(matrices.size());
  for (const Matrix& m : matrices) table.push_back(view_of(m));
  const size_t nbytes = table.size() * sizeof(Weight4Bit);
  return upload_once(table.data(), nbytes, {static_cast<int64_t>(nbytes)}, DType::uint8,
                     elements_of(matrices[0]).device());
}

// Matrices that were offloaded meanwhile lie elsewhere now.
void renew_table(const ExpertWeights& weights) {
  const uint64_t moves = weights.device().moves();
  if (weights.moves == moves) return;
  weights.table = table_of(weights.matrices);
  weights.moves = moves;
}

// The fields that forward and backward share.
ExpertChoice check_choice(const char* op, const Tensor& x, const Tensor& shares, const Tensor& experts,
                          const ExpertWeights& weights) {
  check_float(op, "x", x);
  check_dtype_is(op, "shares", shares, DType::float32);
  check_indices(op, "experts", experts);
  check_same_device(op, x, shares, experts, weights.table);
  check_shape(x.ndim() == 2 && x.shape()[1] == weights.hidden, op, "x must be [tokens, ", weights.hidden, "], got ",
              x.shape());
  check_shape(experts.ndim() == 2 && experts.shape()[0] == x.shape()[0], op, "experts must be [", x.shape()[0],
              ", choices], got ", experts.shape());
  check_shape_is(op, "shares", shares, experts.shape());
  renew_table(weights);
  // A recording holds what it gets the address of: the table has those of the matrices.
  if (x.device().pool().is_recording())
    for (const Matrix& m : weights.matrices) view_of(m);
  return {.matrices = weights.table.ptr<const Weight4Bit>(),
          .experts = experts.ptr<const int32_t>(),
          .shares = shares.ptr<const float>(),
          .tokens = x.shape()[0],
          .choices = experts.shape()[1],
          .count = weights.count,
          .hidden = weights.hidden,
          .width = weights.width,
          .is_quantized = weights.is_quantized,
          .aligned = weights.aligned,
          .matrix_dtype = weights.dtype,
          .fault = x.device().fault()};
}

}  // namespace

ExpertWeights expert_weights(const std::vector<Matrix>& gates, const std::vector<Matrix>& ups,
                             const std::vector<Matrix>& downs) {
  constexpr const char* op = "expertWeights";
  check_argument(!gates.empty(), op, "there must be at least one expert");
  check_argument(ups.size() == gates.size() && downs.size() == gates.size(), op,
                 "there must be as many ups and downs as gates, got ", ups.size(), " and ", downs.size(), " for ",
                 gates.size());
  const Matrix& first = gates[0];
  const Tensor* floats = std::get_if<Tensor>(&first);
  if (floats) check_float(op, "gates", *floats);
  const Shape& shape = shape_of(first);
  check_shape(shape.ndim() == 2, op, "gates[0] must be a matrix [width, hidden], got ", shape);
  const int64_t width = shape[0], hidden = shape[1];
  ExpertWeights weights = {.matrices = {},
                           .table = {},
                           .moves = elements_of(first).device().moves(),
                           .count = static_cast<int64_t>(gates.size()),
                           .hidden = hidden,
                           .width = width,
                           .is_quantized = floats == nullptr,
                           .aligned = true,
                           .dtype = floats ? floats->dtype() : DType::float32};
  const auto add = [&](const char* name, size_t i, const Matrix& m, const Shape& expected) {
    check_matrix(op, name, i, m, first, expected);
    weights.matrices.push_back(m);
    weights.aligned &= reinterpret_cast<uintptr_t>(view_of(m).packed) % 16 == 0;
  };
  for (size_t i = 0; i < gates.size(); i++) {
    add("gates", i, gates[i], {width, hidden});
    add("ups", i, ups[i], {width, hidden});
    add("downs", i, downs[i], {hidden, width});
  }
  weights.table = table_of(weights.matrices);
  return weights;
}

Tensor experts_swiglu(const Tensor& x, const Tensor& shares, const Tensor& experts, const ExpertWeights& weights,
                      const std::optional<Tensor>& residual) {
  constexpr const char* op = "expertsSwiglu";
  const ExpertChoice choice = check_choice(op, x, shares, experts, weights);
  if (residual) {
    check_same_device(op, x, *residual);
    check_same_dtype(op, "x", x, "residual", *residual);
    check_shape_is(op, "residual", *residual, x.shape());
  }
  const Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  enqueue(kernels::experts_swiglu, x.device(),
          ExpertsSwigluArgs{.x = x.data(),
                            .residual = residual ? residual->data() : nullptr,
                            .y = y.data(),
                            .choice = choice,
                            .dtype = x.dtype()});
  return y;
}

std::tuple<Tensor, Tensor> experts_swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& shares,
                                                   const Tensor& experts, const ExpertWeights& weights) {
  constexpr const char* op = "expertsSwigluBackward";
  const ExpertChoice choice = check_choice(op, x, shares, experts, weights);
  check_same_device(op, x, dy);
  check_same_dtype(op, "x", x, "dy", dy);
  check_shape_is(op, "dy", dy, x.shape());
  const Tensor dx = Tensor::empty(x.shape(), x.dtype(), x.device());
  const Tensor dshares = Tensor::empty(shares.shape(), DType::float32, x.device());
  enqueue(kernels::experts_swiglu_backward, x.device(),
          ExpertsSwigluBackwardArgs{.dy = dy.data(),
                                    .x = x.data(),
                                    .dx = dx.data(),
                                    .dshares = dshares.ptr<float>(),
                                    .choice = choice,
                                    .dtype = x.dtype()});
  return {dx, dshares};
}

}  // namespace bnb::ops
