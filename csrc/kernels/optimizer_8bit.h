// One optimizer step with 8-bit states: uint8 codes of the dynamic maps (signed for state1, unsigned for
// state2) with a float32 scale per 256 elements. Same jobs and rules as the 32-bit contract.
#pragma once
#include "kernels/optimizer_32bit.h"

namespace bnb {

BNB_KERNEL(optimizer_8bit, OptimizerArgs)

}  // namespace bnb
