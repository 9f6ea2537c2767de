// What a launch may ask for; the same limits on every architecture since 5.0, but for shared memory.

#include "core/error.h"
#include "cuda/stream.h"

namespace bnb::cuda {

void check_grid(uint64_t x, uint64_t y, uint64_t z, uint64_t threads, size_t shared, const GpuInfo& gpu) {
  if (x <= 0x7fffffff && y <= 65535 && z <= 65535 && threads <= 1024 &&
      shared <= static_cast<size_t>(gpu.shared_per_block))
    return;
  fail(Code::shape, "launch", "the shape is too large for a grid: [", x, ", ", y, ", ", z, "] blocks of ", threads,
       " threads with ", shared, " bytes of shared memory");
}

}  // namespace bnb::cuda
