// What blockwise quantization keeps, each as one object behind one slot: a layer's forward passes one handle, not six
// tensors and three numbers.
#pragma once
#include <variant>
#include <vector>

#include "core/activation_quant.h"
#include "core/tensor.h"

namespace bnb {

// The scales of blocks: float32, or quantized themselves and then with what expands them.
struct Scales {
  Tensor absmax;             // [blocks] float32, or uint8 codes when nested
  Tensor nested_absmax;      // [ceil(blocks / nested_blocksize)] float32; undefined unless nested
  Tensor nested_code;        // [256] float32; undefined unless nested
  Tensor offset;             // [1] float32; undefined unless nested
  int64_t blocksize;         // elements that share a scale
  int64_t nested_blocksize;  // scales that share a nested one; 0 unless nested

  bool is_nested() const { return nested_absmax.defined(); }
  int64_t blocks() const { return absmax.numel(); }
  Device& device() const { return absmax.device(); }
};

// A 4-bit tensor with everything needed to decode it.
struct Quantized4Bit {
  Tensor packed;  // uint8 bytes [ceil(numel / 2)], first code in the high nibble; any storage dtype
  Scales scales;
  Shape shape;  // of the unquantized tensor
  QuantType type;
  DType dtype;                                          // of the unquantized tensor: what dequantizing gives by default
  ActivationQuant activations = ActivationQuant::none;  // of what it is multiplied by

  Device& device() const { return packed.device(); }
};

// A matrix [outputs, inputs]: floats, or 4-bit.
using Matrix = std::variant<Tensor, Quantized4Bit>;

// The matrices of a mixture of experts, and the table of them that kernels read.
struct ExpertWeights {
  std::vector<Matrix> matrices;  // gate, up and down of each expert
  // Bytes: a Weight4Bit a matrix (kernels/experts_swiglu.h), with their addresses when the device had so many moves.
  mutable Tensor table;
  mutable uint64_t moves;
  int64_t count, hidden, width;
  bool is_quantized;
  bool aligned;  // every matrix to 16 bytes
  DType dtype;   // of the matrices, if they are floats

  Device& device() const { return table.device(); }
};

}  // namespace bnb
