// cuBLASLt, where the machine has it: opened at run time, never needed. See cublaslt.cc.
#pragma once
#include "cuda/stream.h"
#include "kernels/matmul.h"

namespace bnb::cuda {

#if BNB_CUDA_EMULATE
inline bool cublaslt_present() { return false; }
#if BNB_CUDA_FAKE
const char* cublaslt_status();  // what fake/runtime.cc has seen
#else
inline const char* cublaslt_status() { return "emulated device"; }
#endif
inline bool cublaslt_matmul(const MatmulArgs&, CudaStream&) { return false; }
#else
// Whether a library of a known version was found; loads it, so ask only where it would be used.
bool cublaslt_present();
// One line for `bnb info`: the version, or why it is not used.
const char* cublaslt_status();
// Queues the product and returns true, or returns false: then the project's own kernel does it.
bool cublaslt_matmul(const MatmulArgs& a, CudaStream& s);
#endif

}  // namespace bnb::cuda
