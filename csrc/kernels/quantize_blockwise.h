// Blockwise 8-bit quantization of a flattened tensor with any ascending map of 256 values, and the mean that
// double quantization subtracts from scales first.
#pragma once
#include "core/kernel.h"
#include "kernels/block_scales.h"

namespace bnb {

// The built-in maps have a direct search; any other is searched by halving.
enum class Map8Bit : int32_t { dynamic_signed, dynamic_unsigned, custom };

struct QuantizeBlockwiseArgs {
  const void* x;        // [n] dtype
  const float* code;    // [256] ascending; read only when map is custom
  const float* offset;  // [1], subtracted from every element first; or null
  uint8_t* codes;       // [n]
  float* absmax;        // [ceil(n / blocksize)]; NaN for a block with an element that is not finite
  int64_t n, blocksize;
  Map8Bit map;
  DType dtype;
};
BNB_KERNEL(quantize_blockwise, QuantizeBlockwiseArgs)

struct DequantizeBlockwiseArgs {
  const uint8_t* codes;  // [n]
  const float* code;     // [256]
  BlockScales scales;    // [ceil(n / blocksize)]
  const float* offset;   // [1], added to every element last; or null
  void* y;               // [n] dtype
  int64_t n, blocksize;
  DType dtype;
};
BNB_KERNEL(dequantize_blockwise, DequantizeBlockwiseArgs)

// mean = sum(x) / n, summed in float64 and rounded once; 0 when n is 0.
struct MeanFloat64Args {
  const float* x;  // [n]
  float* mean;     // [1]
  int64_t n;
};
BNB_KERNEL(mean_float64, MeanFloat64Args)

}  // namespace bnb
