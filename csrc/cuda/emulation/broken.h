// See broken.cu.
#pragma once
#include <cstdint>

#include "cuda/stream.h"

namespace bnb::cuda {

// Throws Code::cuda: what the emulator finds, or that it found nothing.
void launch_broken(CudaStream& s, int32_t which);

}  // namespace bnb::cuda
