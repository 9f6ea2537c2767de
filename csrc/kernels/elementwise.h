// Elementwise functions of one and of two tensors, and their gradients. Arithmetic is float32 whatever the
// dtype, with one rounding at the store; int32 is for add, sub, mul, maximum and minimum, and wraps.
#pragma once
#include "core/kernel.h"

namespace bnb {

// The numbers cross to JavaScript (src/tensor/enums.ts has the same order). The gradient is computed from x, or where
// it says so from y.
enum class UnaryOp : int32_t {
  neg,
  abs,
  sign,
  square,
  reciprocal,  // y
  sqrt,        // y
  rsqrt,       // y
  exp,         // y
  log,
  sigmoid,  // y
  tanh,     // y
  relu,     // y
  silu,
  gelu,
  gelu_tanh,
  pow
};
enum class BinaryOp : int32_t { add, sub, mul, div, maximum, minimum };

struct UnaryArgs {
  const void* x;  // [n] dtype
  void* y;        // [n] dtype; may be x
  int64_t n;
  double exponent;  // of pow
  UnaryOp op;
  DType dtype;
};
BNB_KERNEL(unary, UnaryArgs)

// dx = dy * f'(x), from x or from y = f(x), whichever is cheaper: see UnaryOp.
struct UnaryBackwardArgs {
  const void* dy;     // [n] dtype
  const void* saved;  // [n] dtype, x or y
  void* dx;           // [n] dtype
  int64_t n;
  double exponent;
  UnaryOp op;
  DType dtype;
};
BNB_KERNEL(unary_backward, UnaryBackwardArgs)

// How two contiguous operands meet in an output of shape dims: along an axis whose bit is set in
// a_repeats, a has one element. Neighbouring axes of one kind are merged, axes of size 1 left out.
constexpr int kBroadcastAxes = 8;
struct BroadcastAxes {
  int64_t dims[kBroadcastAxes];
  int32_t ndim;  // at least 1
  uint16_t a_repeats, b_repeats;
};

struct BinaryArgs {
  const void* a;
  const void* b;  // null: `number` stands for every element
  void* y;        // [n] dtype
  int64_t n;
  double number;
  BroadcastAxes axes;
  BinaryOp op;
  DType dtype;
};
BNB_KERNEL(binary, BinaryArgs)

// da = dy * df/da and db = dy * df/db at the shape of dy, for mul, div, maximum and minimum. At a tie of
// maximum or minimum each side gets half.
struct BinaryBackwardArgs {
  const void* dy;  // [n] dtype
  const void* a;   // dtype; null where mul does not need it
  const void* b;   // dtype; null: `number`, or where mul does not need it
  void* da;        // [n] a_dtype; null when not wanted
  void* db;        // [n] b_dtype; null when not wanted
  int64_t n;
  double number;
  BroadcastAxes axes;
  BinaryOp op;
  DType dtype;
  DType a_dtype, b_dtype;  // dtype, or float32 where a sum over broadcast axes follows
};
BNB_KERNEL(binary_backward, BinaryBackwardArgs)

}  // namespace bnb
