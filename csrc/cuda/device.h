// The GPUs of this machine as devices. Implemented by device.cc on the CUDA runtime, by emulation/device.cc without.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"

namespace bnb::cuda {

void append_devices(std::vector<std::unique_ptr<Device>>& devices);
// Why a GPU of this machine is not among them, with advice; empty when none is missing.
std::string unavailable();
// What is used beside the package's own kernels, or why not: one line.
std::string libraries();

}  // namespace bnb::cuda
