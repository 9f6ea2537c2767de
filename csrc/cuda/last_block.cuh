// No block waits for another: the last one to arrive does what needs the work of all.
#pragma once
#include "cuda/kernel.cuh"

namespace bnb::cuda {

// Whether this block is the last of `parties` that come here; the others' writes are visible to it then. All threads.
__device__ __forceinline__ bool last_of(int32_t* counter, int32_t parties) {
  BNB_SHARED(int32_t, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == parties - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last != 0;
}

}  // namespace bnb::cuda
