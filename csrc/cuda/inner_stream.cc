// The stream of a kernel function that others call while they hold scratch memory.
#include "cuda/stream.h"

namespace bnb {

CudaStream& CudaStream::inner() {
  if (!inner_stream) {
    inner_stream = new CudaStream;
    inner_stream->handle = handle;
    inner_stream->gpu = gpu;
    inner_stream->counters = counters;
    inner_stream->runtime = runtime;
  }
  inner_stream->capturing = capturing;
  return *inner_stream;
}

}  // namespace bnb
