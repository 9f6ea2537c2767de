// Blockwise 4-bit quantization of a flattened tensor: a scale per block (its largest magnitude) and a nibble per
// element, the first of a pair in the high half of the byte.
#pragma once
#include "core/kernel.h"
#include "kernels/block_scales.h"

namespace bnb {

struct Quantize4BitArgs {
  const void* x;    // [n] dtype
  uint8_t* packed;  // [ceil(n / 2)]
  float* absmax;    // [ceil(n / blocksize)]; NaN for a block with an element that is not finite
  int64_t n, blocksize;
  QuantType type;
  DType dtype;
};
BNB_KERNEL(quantize_4bit, Quantize4BitArgs)

struct Dequantize4BitArgs {
  const uint8_t* packed;  // [ceil(n / 2)]
  BlockScales scales;     // [ceil(n / blocksize)]
  void* y;                // [n] dtype
  int64_t n, blocksize;
  QuantType type;
  DType dtype;
};
BNB_KERNEL(dequantize_4bit, Dequantize4BitArgs)

}  // namespace bnb
