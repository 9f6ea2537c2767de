// y = x @ dequantize(w)^T + bias + residual for a weight kept in 4-bit blocks, the same for several weights of one x,
// and dx = dy @ dequantize(w). The dequantized weight never exists as a whole.
#pragma once
#include "core/activation_quant.h"
#include "core/kernel.h"
#include "kernels/block_scales.h"

namespace bnb {

// A 4-bit tensor [n, k], flattened: two codes a byte, the first in the high nibble, one scale a block.
struct Weight4Bit {
  const uint8_t* packed;  // [ceil(n * k / 2)]
  BlockScales scales;     // [ceil(n * k / blocksize)]
  int64_t blocksize;
  QuantType type;
  ActivationQuant activations;  // a GPU ignores it, and so do products with k % 64 != 0
};

// How a CPU computes the product; plan/linear_4bit_cpu.h chooses. A GPU ignores it: plan/linear_4bit.h.
//   small   up to 8 rows of x, each decoded vector used for all of them; needs k % 64 == 0, k > 0
//   packed  weights decoded into a panel that a register-blocked product reads; needs k % 64 == 0
//   plain   the same with a decoder that takes any k
enum class Linear4BitPlan : int32_t { small, packed, plain };

struct Linear4BitArgs {
  const void* x;         // [m, k] dtype
  const void* bias;      // [n] bias_dtype, or null
  const void* residual;  // [m, n] y_dtype, added before the rounding; or null
  void* y;               // [m, n] y_dtype
  Weight4Bit w;
  int64_t m, n, k;
  DType dtype, bias_dtype, y_dtype;
  Linear4BitPlan plan;
  int32_t variant;  // Linear4BitVariant that a GPU has to use (plan/linear_4bit.h), or -1
};
BNB_KERNEL(linear_4bit, Linear4BitArgs)

// Products of one x with up to three weights: y[i] = x @ dequantize(w[i])^T; or, with swiglu, of two weights and
// y[0] = silu(x @ dequantize(w[0])^T) * (x @ dequantize(w[1])^T).
constexpr int kLinear4BitGroup = 3;
struct Linear4BitGroupArgs {
  const void* x;              // [m, k] dtype
  void* y[kLinear4BitGroup];  // [m, n[i]] dtype
  Weight4Bit w[kLinear4BitGroup];
  int64_t n[kLinear4BitGroup];  // equal with swiglu
  int64_t m, k;
  int32_t count;
  bool swiglu;  // count is 2
  DType dtype;
  Linear4BitPlan plan;
  int32_t variant;  // as above
};
BNB_KERNEL(linear_4bit_group, Linear4BitGroupArgs)

// One of the products alone, into y [m, n[i]] y_dtype.
BNB_INLINE Linear4BitArgs one_of(const Linear4BitGroupArgs& a, int i, void* y, DType y_dtype) {
  return {.x = a.x,
          .bias = nullptr,
          .residual = nullptr,
          .y = y,
          .w = a.w[i],
          .m = a.m,
          .n = a.n[i],
          .k = a.k,
          .dtype = a.dtype,
          .bias_dtype = DType::float32,
          .y_dtype = y_dtype,
          .plan = a.plan,
          .variant = a.variant};
}

struct Linear4BitBackwardArgs {
  const void* dy;  // [m, n] dtype
  void* dx;        // [m, k] dtype
  Weight4Bit w;
  int64_t m, n, k;
  DType dtype;
  Linear4BitPlan plan;  // packed or plain
  int32_t variant;      // as above
};
BNB_KERNEL(linear_4bit_backward, Linear4BitBackwardArgs)

}  // namespace bnb
