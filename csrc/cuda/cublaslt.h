// cuBLASLt, where the machine has it: opened at run time, never needed. See cublaslt.cc.
#pragma once
#include "cuda/stream.h"
#include "kernels/matmul.h"

namespace bnb::cuda {

// Whether a library of a known version was found; loads it, so ask only where it would be used.
bool cublaslt_present();
// One line for `bnb doctor`: the version, or why it is not used.
const char* cublaslt_status();
// Queues the product and returns true, or returns false: then the project's own kernel does it.
bool cublaslt_matmul(const MatmulArgs& a, CudaStream& s);

// Frees what the library holds for a stream that ends.
void cublaslt_forget(const CudaStream& s);

// What `plan` says of this card. Loading the library takes its time, so it is looked for only where it decides.
template <class Plan>
auto plan_with_library(GpuInfo gpu, const Plan& plan) {
  gpu.has_cublaslt = false;
  const auto without = plan(gpu);
  gpu.has_cublaslt = true;
  const auto with = plan(gpu);
  const bool decides = with.variant != without.variant || with.possible != without.possible;
  return decides && cublaslt_present() ? with : without;
}

}  // namespace bnb::cuda
