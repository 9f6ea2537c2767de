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

}  // namespace bnb::ops
