// Positions read by GPU kernels.
#pragma once
#include "cuda/kernel.cuh"
#include "kernels/position.h"

namespace bnb::cuda {

// Adds the position to `offset`, or reports that it is out of range. The same for every thread of the grid.
__device__ __forceinline__ bool resolve(const Position& p, const char* op, int64_t& offset) {
  if (add_position(p, offset)) return true;
  if (global_thread() == 0) report_out_of_range(p.fault, op, p.value[0], p.limit);
  return false;
}

}  // namespace bnb::cuda
