// See probe.cu.
#pragma once

namespace bnb::cuda {

const void* probe_kernel();

}  // namespace bnb::cuda
