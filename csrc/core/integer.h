// Arithmetic of sizes, for the host and for kernels.
#pragma once
#include <cstdint>

#include "core/float16.h"

namespace bnb {

// The number of parts of size b that hold a; neither is negative, and b is not 0.
BNB_INLINE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace bnb
