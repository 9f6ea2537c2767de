// What device.cc, memory.cc and stream.cc share: the only files that call the CUDA runtime, beside the launch in
// kernel.cuh.
#pragma once
#include <cuda_runtime.h>

#include "core/device.h"
#include "cuda/stream.h"

namespace bnb::cuda {

// Throws Code::cuda: "what: the runtime's words (advice)".
void check(cudaError_t status, const char* what);
// An error after which the driver refuses all further work of this process.
bool is_sticky(cudaError_t status);

void* allocate(Device& device, size_t nbytes);
void release(Device& device, void* block);
void copy(Device& device, void* to, const void* from, size_t nbytes);
void finish(Device& device);
void stop(Device& device);
void begin_capture(Device& device);
void* capture(Device& device);
void replay(Device& device, void* executable);
void release_graph(Device& device, void* executable);
// On the worker, as its first command.
void start(Device& device);

// Host memory that a GPU reads and writes directly, in two halves that take turns: one is filled while the other is
// under way.
struct Staging {
  static constexpr size_t kHalf = size_t{4} << 20;
  unsigned char* memory = nullptr;
  cudaEvent_t copied[2] = {};
  int next = 0;
};

struct RuntimeStream : CudaStream {
  int device = 0;
  Staging staging;
  Fault* fault = nullptr;  // mapped host memory

  cudaStream_t stream() const { return static_cast<cudaStream_t>(handle); }
};

inline RuntimeStream& runtime_stream(Device& device) { return *static_cast<RuntimeStream*>(device.cuda()); }

}  // namespace bnb::cuda
