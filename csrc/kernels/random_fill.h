// Random numbers from a counter: element i of a fill with offset o takes word i % 4 of the Philox block
// o + i / 4, so the bits depend on seed and offset alone, not on the ISA or the number of threads.
#pragma once
#include "core/kernel.h"
#include "core/random.h"

namespace bnb {

// The numbers cross to JavaScript (src/ops/random.ts lists the same order).
//   uniform   low + u * (high - low), u a multiple of 2^-24 in [0, 1)
//   normal    low + z * high, z by Box-Muller from words (0, 1) and (2, 3) of a block
//   integer   int32 in [low, high), high - low <= 2^32
enum class Distribution : int32_t { uniform, normal, integer };

struct RandomFillArgs {
  void* y;  // [n] dtype
  int64_t n;
  uint64_t seed, offset;
  double low, high;
  Distribution distribution;
  DType dtype;  // a float type; int32 for integer
};
BNB_KERNEL(random_fill, RandomFillArgs)

}  // namespace bnb
