// Device memory, and copies through pinned staging. Blocks are our own: the pool caches them, so the runtime's
// allocator is asked once per block and not per tensor.

#include <cstring>

#include "core/error.h"
#include "cuda/runtime.h"

namespace bnb {

void* CudaStream::scratch(size_t nbytes) {
  if (nbytes <= scratch_capacity) return scratch_block;
  if (capturing) fail(Code::cuda, "graph", "an op needs more scratch memory than before: run the function once first");
  auto stream = static_cast<cudaStream_t>(handle);
  // Kernels before this one may still use the old block.
  cuda::check(cudaStreamSynchronize(stream), "scratch");
  if (scratch_block) cudaFree(scratch_block);
  scratch_block = nullptr;
  scratch_capacity = 0;
  const size_t capacity = nbytes + nbytes / 4;
  if (cudaMalloc(&scratch_block, capacity) != cudaSuccess) {
    cudaGetLastError();
    scratch_block = nullptr;
    fail(Code::oom, "scratch", "out of device memory: wanted ", capacity, " bytes");
  }
  scratch_capacity = capacity;
  return scratch_block;
}

namespace cuda {
namespace {

// The index of the GPU whose memory this is, or -1 for the host's.
int device_of(const void* p) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, p) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  return attributes.type == cudaMemoryTypeDevice ? attributes.device : -1;
}

// Chunks go through the halves in turn; a half is filled again when its last copy has left.
void upload(RuntimeStream& s, unsigned char* to, const unsigned char* from, size_t nbytes) {
  while (nbytes > 0) {
    const size_t n = nbytes < Staging::kHalf ? nbytes : Staging::kHalf;
    const int half = s.staging.next;
    s.staging.next ^= 1;
    unsigned char* staged = s.staging.memory + static_cast<size_t>(half) * Staging::kHalf;
    check(cudaEventSynchronize(s.staging.copied[half]), "upload");
    std::memcpy(staged, from, n);
    check(cudaMemcpyAsync(to, staged, n, cudaMemcpyHostToDevice, s.stream()), "upload");
    check(cudaEventRecord(s.staging.copied[half], s.stream()), "upload");
    to += n;
    from += n;
    nbytes -= n;
  }
}

// One chunk is copied out of staging while the next is on its way.
void download(RuntimeStream& s, unsigned char* to, const unsigned char* from, size_t nbytes) {
  size_t issued = 0, taken = 0;
  size_t sizes[2] = {};
  int half = s.staging.next, oldest = s.staging.next;
  const auto issue = [&] {
    const size_t n = nbytes - issued < Staging::kHalf ? nbytes - issued : Staging::kHalf;
    check(cudaMemcpyAsync(s.staging.memory + static_cast<size_t>(half) * Staging::kHalf, from + issued, n,
                          cudaMemcpyDeviceToHost, s.stream()),
          "data");
    check(cudaEventRecord(s.staging.copied[half], s.stream()), "data");
    sizes[half] = n;
    issued += n;
    half ^= 1;
  };
  issue();
  while (taken < nbytes) {
    if (issued < nbytes) issue();
    check(cudaEventSynchronize(s.staging.copied[oldest]), "data");
    std::memcpy(to + taken, s.staging.memory + static_cast<size_t>(oldest) * Staging::kHalf, sizes[oldest]);
    taken += sizes[oldest];
    oldest ^= 1;
  }
}

}  // namespace

void* allocate(Device& device, size_t nbytes) {
  void* block = nullptr;
  if (cudaSetDevice(device.info().index) == cudaSuccess && cudaMalloc(&block, nbytes) == cudaSuccess) return block;
  cudaGetLastError();
  return nullptr;
}

void release(Device& device, void* block) {
  cudaSetDevice(device.info().index);
  cudaFree(block);  // waits for the kernels that use it
}

void copy(Device& device, void* to, const void* from, size_t nbytes) {
  if (nbytes == 0) return;
  RuntimeStream& s = runtime_stream(device);
  const int target = device_of(to), source = device_of(from);
  if (target >= 0 && source >= 0) {
    check(cudaMemcpyAsync(to, from, nbytes, cudaMemcpyDefault, s.stream()), "copy");
    // Within one GPU the stream keeps the order; another goes on when the copy is done.
    if (target != source) check(cudaStreamSynchronize(s.stream()), "copy");
  } else if (target >= 0) {
    upload(s, static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), nbytes);
  } else {
    download(s, static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), nbytes);
  }
}

}  // namespace cuda
}  // namespace bnb
