// Native handles of quantized data as kernels see them.
#pragma once
#include "core/quantized.h"
#include "kernels/linear_4bit.h"
#include "ops/validate.h"

namespace bnb::ops {

inline void check_apart_from_scales(const char* op, const char* written, const Tensor& to, const Scales& s) {
  check_apart(op, written, to, "absmax", s.absmax);
  if (!s.is_nested()) return;
  check_apart(op, written, to, "absmax of absmax", s.nested_absmax);
  check_apart(op, written, to, "code of absmax", s.nested_code);
  check_apart(op, written, to, "offset", s.offset);
}

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
