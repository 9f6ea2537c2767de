// What a choice between GPU kernels may depend on. Plain numbers, so that a plan can be tested for a card that
// is not there.
#pragma once
#include <cstdint>

namespace bnb {

struct GpuInfo {
  int32_t cc = 0;                // compute capability * 10: 75, 80, 89, 90, 100, 120
  int32_t sms = 1;               // multiprocessors
  int64_t shared_per_block = 0;  // bytes of shared memory that one block may ask for
  int64_t l2_bytes = 0;
  bool has_cublaslt = false;  // unknown to a device: cuda/cublaslt.h asks where a plan depends on it
};

}  // namespace bnb
