// Native handles of quantized data as kernels see them.
#pragma once
#include "core/quantized.h"
#include "kernels/linear_4bit.h"

namespace bnb::ops {

inline BlockScales scales_view(const Scales& s) {
  const auto floats = [&](const Tensor& t) { return s.is_nested() ? t.ptr<const float>() : nullptr; };
  return {.absmax = s.absmax.data(),
          .nested_absmax = floats(s.nested_absmax),
          .nested_code = floats(s.nested_code),
          .offset = floats(s.offset),
          .nested_blocksize = s.nested_blocksize};
}

inline Weight4Bit weight_view(const Quantized4Bit& w) {
  return {.packed = w.packed.ptr<const uint8_t>(),
          .scales = scales_view(w.scales),
          .blocksize = w.scales.blocksize,
          .type = w.type,
          .activations = w.activations};
}

}  // namespace bnb::ops
