// The stream of a kernel function that others call while they hold scratch memory.
#include "cuda/stream.h"

namespace bnb {

CudaStream& CudaStream::inner() {
  if (!inner_stream) inner_stream = new CudaStream{.handle = handle, .gpu = gpu, .counters = counters};
  inner_stream->capturing = capturing;
  return *inner_stream;
}

}  // namespace bnb
