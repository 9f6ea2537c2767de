// The scales of a blockwise quantized tensor as kernels see them: plain float32, or double quantized.
#pragma once
#include "core/kernel.h"

namespace bnb {

// Nested: scale[b] = nested_code[absmax[b]] * nested_absmax[b / nested_blocksize] + offset.
struct BlockScales {
  const void* absmax;          // [blocks] float, or uint8 when nested
  const float* nested_absmax;  // [ceil(blocks / nested_blocksize)], or null
  const float* nested_code;    // [256]
  const float* offset;         // [1]
  int64_t nested_blocksize;
};

BNB_INLINE float scale_of(const BlockScales& s, int64_t block) {
  if (!s.nested_absmax) return static_cast<const float*>(s.absmax)[block];
  const uint8_t code = static_cast<const uint8_t*>(s.absmax)[block];
  return s.nested_code[code] * s.nested_absmax[block / s.nested_blocksize] + s.offset[0];
}

}  // namespace bnb
