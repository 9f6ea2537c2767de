// The table of contents: every native op, one declaration and one sentence. Shapes in brackets, row-major.
#pragma once
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/quantized.h"
#include "core/tensor.h"

namespace bnb::ops {

// ---- tensors (ops/tensors.cc)
// An uninitialized tensor.
Tensor empty(const Shape& shape, DType dtype, Device& device);
// The bytes of x from byte `offset` as another shape and dtype, sharing memory.
Tensor view(const Tensor& x, const Shape& shape, DType dtype, int64_t offset);
// A copy of x on another device (or on the same one).
Tensor to_device(const Tensor& x, Device& device);
// A handle over a packed 4-bit tensor and its statistics; shares their memory.
Quantized4Bit quantized_4bit(const Tensor& packed, const Tensor& absmax, const std::optional<Tensor>& nested_absmax,
                             const std::optional<Tensor>& nested_code, const std::optional<Tensor>& offset,
                             const Shape& shape, int64_t blocksize, int64_t nested_blocksize, QuantType type,
                             DType dtype);
// The tensors of such a handle: packed, absmax, and when nested nested_absmax, nested_code, offset.
std::vector<Tensor> quantized_parts(const Quantized4Bit& weight);

// ---- matrix products (ops/matmul.cc)
// a[..., M, K] b[..., K, N], where b may be one matrix for all; a transposed operand is stored with its last two
// axes swapped.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b);
// The gradients of a and b that are needed.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> matmul_backward(const Tensor& a, const Tensor& b,
                                                                         const Tensor& dy, bool transpose_a,
                                                                         bool transpose_b, bool needs_a, bool needs_b);
// x[..., K] weight[N, K]^T + bias[N].
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
// The gradients of x, weight and bias that are needed.
std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>> linear_backward(
    const Tensor& x, const Tensor& weight, const Tensor& dy, bool needs_x, bool needs_weight, bool needs_bias);
// Runs multiply-adds in registers on every thread; gives [how many, a number without meaning] in float64.
Tensor fma_peak(int64_t iterations, Device& device);

}  // namespace bnb::ops
