// What a kernel function gets beside its arguments: the stream to launch on, the card, and scratch memory.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/gpu.h"
#include "core/kernel.h"

namespace bnb {

// Counters that stand at zero between kernel functions; a kernel that uses them leaves them so.
constexpr int kCounters = 4096;

struct CudaStream {
  void* handle = nullptr;  // cudaStream_t
  GpuInfo gpu;
  int32_t* counters = nullptr;  // [kCounters] device memory

  // Device memory, 256-byte aligned, for the launches of one kernel function; the next function reuses it. One
  // call per kernel function. Throws Code::oom.
  void* scratch(size_t nbytes);

  // The same queue with scratch memory of its own, for a kernel function that others call while they hold theirs.
  CudaStream& inner();

  CudaStream* inner_stream = nullptr;
  void* scratch_block = nullptr;
  size_t scratch_capacity = 0;
  bool capturing = false;
};

namespace cuda {

// Throws Code::cuda with the cause and advice if the launch that was just made failed.
void check_launch(const char* what);
// Copies between host and device and waits; never while a graph is recorded. For self-tests.
void copy_and_wait(CudaStream& s, void* to, const void* from, size_t nbytes);
// Throws if a grid cannot be launched.
void check_grid(uint64_t x, uint64_t y, uint64_t z, uint64_t threads, size_t shared, const GpuInfo& gpu);

}  // namespace cuda
}  // namespace bnb
