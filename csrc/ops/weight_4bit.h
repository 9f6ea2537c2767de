// A native handle of a 4-bit tensor as kernels see it.
#pragma once
#include "core/quantized.h"
#include "kernels/linear_4bit.h"

namespace bnb::ops {

inline Weight4Bit weight_view(const Quantized4Bit& w) {
  return {.packed = w.packed.ptr<const uint8_t>(),
          .scales = {.absmax = w.absmax.data(),
                     .nested_absmax = w.is_nested() ? w.nested_absmax.ptr<const float>() : nullptr,
                     .nested_code = w.is_nested() ? w.nested_code.ptr<const float>() : nullptr,
                     .offset = w.is_nested() ? w.offset.ptr<const float>() : nullptr,
                     .nested_blocksize = w.nested_blocksize},
          .blocksize = w.blocksize,
          .type = w.type};
}

}  // namespace bnb::ops
