// A mixture of experts, each a gated MLP without biases: y[t] = residual[t] + the sum over the experts e that row t
// chose of share * down_e(silu(gate_e(x[t])) * up_e(x[t])). Only what was chosen is computed; which rows an expert has
// only the device knows.
#pragma once
#include "core/kernel.h"
#include "kernels/linear_4bit.h"

namespace bnb {

// The matrices of all experts, and who chose which.
struct ExpertChoice {
  const Weight4Bit* matrices;  // [count, 3] in device memory: gate and up [width, hidden], down [hidden, width]
  const int32_t* experts;      // [tokens, choices], each in [0, count), none twice in a row
  const float* shares;         // [tokens, choices]
  int64_t tokens, choices, count, hidden, width;
  // Unless they are quantized, `packed` holds the elements of a matrix, of this dtype.
  bool is_quantized, aligned;  // aligned: every matrix to 16 bytes
  DType matrix_dtype;
  Fault* fault;
};

// Where the matrices of an expert stand in its row of the table.
constexpr int kGate = 0, kUp = 1, kDown = 2, kExpertMatrices = 3;

struct ExpertsSwigluArgs {
  const void* x;         // [tokens, hidden] dtype
  const void* residual;  // [tokens, hidden] dtype, or null
  void* y;               // [tokens, hidden] dtype
  ExpertChoice choice;
  DType dtype;
};
BNB_KERNEL(experts_swiglu, ExpertsSwigluArgs)

struct ExpertsSwigluBackwardArgs {
  const void* dy;  // [tokens, hidden] dtype
  const void* x;   // [tokens, hidden] dtype
  void* dx;        // [tokens, hidden] dtype
  float* dshares;  // [tokens, choices]
  ExpertChoice choice;
  DType dtype;
};
BNB_KERNEL(experts_swiglu_backward, ExpertsSwigluBackwardArgs)

}  // namespace bnb
