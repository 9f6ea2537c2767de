// A 4-bit tensor with everything needed to decode it, as one object behind one slot: a layer's forward
// passes one handle, not six tensors and three numbers.
#pragma once
#include "core/tensor.h"

namespace bnb {

struct Quantized4Bit {
  Tensor packed;         // uint8 bytes [ceil(numel / 2)], first code in the high nibble; any storage dtype
  Tensor absmax;         // [blocks] float32, or uint8 codes when nested
  Tensor nested_absmax;  // [ceil(blocks / nested_blocksize)] float32; undefined unless nested
  Tensor nested_code;    // [256] float32; undefined unless nested
  Tensor offset;         // [1] float32; undefined unless nested
  Shape shape;           // of the unquantized tensor
  int64_t blocksize;
  int64_t nested_blocksize;  // 0 unless nested
  QuantType type;
  DType dtype;  // of the unquantized tensor: what dequantizing gives by default

  bool is_nested() const { return nested_absmax.defined(); }
  Device& device() const { return packed.device(); }
};

}  // namespace bnb
