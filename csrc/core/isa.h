// Which instruction set the CPU kernels use in this process: the widest that the CPU supports, or a lower
// one forced by BNB_CPU=base|avx2|avx_vnni|avx512.
#pragma once
#include "core/kernel.h"

namespace bnb {

// Decided once, at the first call. An unknown or unsupported BNB_CPU is reported on stderr and ignored.
Isa active_isa();
// Whether kernels of the level avx2 may use AVX-VNNI, which some CPUs without AVX-512 have.
bool has_avx_vnni();
// As BNB_CPU names it.
const char* isa_name();

}  // namespace bnb
