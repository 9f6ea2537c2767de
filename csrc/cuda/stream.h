// What a kernel function gets beside its arguments: the stream to launch on, the card, and scratch memory.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/gpu.h"
#include "core/kernel.h"

namespace bnb {

// Counters that stand at zero between kernel functions; a kernel that uses them leaves them so.
constexpr int kCounters = 4096;

namespace cuda {
struct RuntimeStream;
}

struct Scratch {
  void* block = nullptr;
  size_t capacity = 0;
};

struct CudaStream {
  void* handle = nullptr;  // cudaStream_t
  GpuInfo gpu;
  int32_t* counters = nullptr;  // [kCounters] device memory

  // Device memory, 256-byte aligned, for the launches of one kernel function; the next function reuses it. One
  // call per kernel function. Throws Code::oom. While a graph is captured the memory is the graph's own.
  void* scratch(size_t nbytes);

  // The same queue with scratch memory of its own, for a kernel function that others call while they hold theirs.
  CudaStream& inner();

  CudaStream* inner_stream = nullptr;
  Scratch eager;
  Scratch captured;  // of the graph that is being captured
  bool capturing = false;
  cuda::RuntimeStream* runtime = nullptr;  // null on an emulated device
};

namespace cuda {

// Before a launch with `shared` bytes of dynamic shared memory: lets the kernel have, from now on, all that the card
// has for a block beside the kernel's static shared memory. Throws Code::shape if that is less.
void allow_shared(CudaStream& s, const void* kernel, size_t shared);
// Throws Code::cuda with the cause and advice if the launch that was just made failed.
void check_launch(const char* what);
// Copies between host and device and waits; never while a graph is recorded. For self-tests.
void copy_and_wait(CudaStream& s, void* to, const void* from, size_t nbytes);
// Throws if a grid cannot be launched.
void check_grid(uint64_t x, uint64_t y, uint64_t z, uint64_t threads, size_t shared, const GpuInfo& gpu);

}  // namespace cuda
}  // namespace bnb
