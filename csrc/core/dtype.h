// Element types of a tensor: sizes, names, and the one place where a run-time dtype becomes a C++ type.
// Nothing here may emit a symbol, because the files compiled per ISA include it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/float16.h"

namespace bnb {

// The numbers cross to JavaScript (src/tensor/dtype.ts lists the same order).
enum class DType : int32_t { float32, float16, bfloat16, int8, uint8, int32, float64 };
constexpr int kDTypeCount = 7;

// The 4-bit codebooks (kernels/codebooks.h); the numbers cross to JavaScript.
enum class QuantType : int32_t { nf4, fp4, af4, int4 };
// All built-in code tables, the 4-bit ones first; the numbers cross to JavaScript.
enum class Codebook : int32_t { nf4, fp4, af4, int4, dynamic_signed, dynamic_unsigned };

constexpr size_t kDTypeSize[kDTypeCount] = {4, 2, 2, 1, 1, 4, 8};
constexpr const char* kDTypeName[kDTypeCount] = {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "float64"};

BNB_INLINE size_t size_of(DType t) { return kDTypeSize[static_cast<int>(t)]; }
BNB_INLINE const char* name_of(DType t) { return kDTypeName[static_cast<int>(t)]; }

// The types that arithmetic accepts; float64 is storage only.
BNB_INLINE bool is_float(DType t) { return t == DType::float32 || t == DType::float16 || t == DType::bfloat16; }

// Calls f with a value of the storage type (float, f16 or bf16). The op has checked is_float.
template <class F>
BNB_HOST_INLINE void visit_float(DType t, const F& f) {
  if (t == DType::float32) {
    f(float{});
  } else if (t == DType::float16) {
    f(f16{});
  } else {
    f(bf16{});
  }
}

}  // namespace bnb
