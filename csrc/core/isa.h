// Which instruction set the CPU kernels use in this process: the widest that the CPU supports, or a lower
// one forced by BNB_CPU=base|avx2|avx512.
#pragma once
#include "core/kernel.h"

namespace bnb {

const char* isa_name(Isa isa);
// Decided once, at the first call. An unknown or unsupported BNB_CPU is reported on stderr and ignored.
Isa active_isa();

}  // namespace bnb
