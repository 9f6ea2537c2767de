// What device.cc, memory.cc and stream.cc share: the only files that call the CUDA runtime, beside the launch in
// kernel.cuh.
#pragma once
#include <cuda_runtime.h>

#include <unordered_map>
#include <vector>

#include "core/device.h"
#include "cuda/stream.h"

namespace bnb::cuda {

// Throws Code::cuda: "what: the runtime's words (advice)".
void check(cudaError_t status, const char* what);
// An error after which the driver refuses all further work of this process.
bool is_sticky(cudaError_t status);

// What the runtime says, with advice where there is some.
std::string explain(cudaError_t status);

void open(Device& device);
void* allocate(Device& device, size_t nbytes);
void release(Device& device, void* block);
void copy(Device& device, void* to, const void* from, size_t nbytes);
void finish(Device& device);
void stop(Device& device);
void begin_capture(Device& device);
void* capture(Device& device);
void abandon_capture(Device& device);
void replay(Device& device, void* executable);
void release_graph(Device& device, void* executable);
void* fence(Device& device);
void copy_aside(Device& device, void* fence, void* to, const void* from, size_t nbytes);
void end_aside(Device& device, void* fence);
// Host memory that a GPU reads and writes directly, in two halves that take turns: one is filled while the other is
// under way.
struct Staging {
  static constexpr size_t kHalf = size_t{4} << 20;
  unsigned char* memory = nullptr;
  cudaEvent_t copied[2] = {};
  int next = 0;
};

// Nothing of it exists before the device is opened.
struct RuntimeStream : CudaStream {
  int device = 0;
  bool is_open = false;
  Staging staging;
  // Of the thread that copies beside the compute stream; made at its first copy.
  cudaStream_t aside = nullptr;
  Staging aside_staging;
  Fault* fault = nullptr;                                // mapped host memory
  std::unordered_map<const void*, size_t> most_dynamic;  // kernel -> dynamic shared memory that it may have
  std::vector<void*> graph_blocks;                       // scratch of the graph that is being captured

  cudaStream_t stream() const { return static_cast<cudaStream_t>(handle); }
};

inline RuntimeStream& runtime_stream(Device& device) { return *static_cast<RuntimeStream*>(device.cuda()); }

// Makes what a stream consists of, on the thread that opens the device, and frees what of it there is. The first
// gives an explanation, empty when all went well.
std::string make_stream(RuntimeStream& s);
void free_stream(RuntimeStream& s);
// The stream for copies aside and its staging. Throws Code::cuda.
void make_aside(RuntimeStream& s);

}  // namespace bnb::cuda
