// Device memory, and copies through pinned staging. Blocks are our own: the pool caches them, so the runtime's
// allocator is asked once per block and not per tensor.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "cuda/runtime.h"

namespace bnb {

void* CudaStream::scratch(size_t nbytes) {
  Scratch& own = capturing ? captured : eager;
  if (nbytes <= own.capacity) return own.block;
  if (own.block && !capturing) {
    // Kernels before this one may still use the old block. Those of a graph go on using theirs.
    cuda::check(cudaStreamSynchronize(static_cast<cudaStream_t>(handle)), "scratch");
    cudaFree(std::exchange(own, {}).block);
  }
  void* block = nullptr;
  const size_t capacity = nbytes + nbytes / 4;
  const cudaError_t status = cudaMalloc(&block, capacity);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(Code::oom, "scratch", "out of device memory: wanted ", capacity, " bytes");
  }
  cuda::check(status, "scratch");
  if (capturing) runtime->graph_blocks.push_back(block);
  own = {block, capacity};
  return block;
}

namespace cuda {
namespace {

// The index of the GPU whose memory this is, or -1 for the host's.
int device_of(const void* p) {
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, p), "copy");
  return attributes.type == cudaMemoryTypeDevice ? attributes.device : -1;
}

// While the pool has cached blocks to give back, no tensor takes the last of the memory: scratch memory, graphs and the
// driver's own are allocated beside the pool.
constexpr int64_t kRoomShare = 32;

bool leaves_room(size_t nbytes) {
  size_t available = 0, total = 0;
  if (cudaMemGetInfo(&available, &total) == cudaSuccess) return available >= nbytes + total / kRoomShare;
  cudaGetLastError();
  return true;
}

// A blocked thread takes the better part of a scheduler's turn to go on, and the copy of a token's id takes less: it
// spins for so long first. BNB_GPU_SPIN gives another number of microseconds; bench/gpu/reads.ts measures it.
std::chrono::microseconds spin() {
  static const std::chrono::microseconds time = [] {
    const char* text = std::getenv("BNB_GPU_SPIN");
    return std::chrono::microseconds(text && *text ? std::atoi(text) : 50);
  }();
  return time;
}

void wait_for(cudaEvent_t event, const char* what) {
  const auto until = std::chrono::steady_clock::now() + spin();
  do {
    const cudaError_t status = cudaEventQuery(event);
    if (status != cudaErrorNotReady) return check(status, what);
    cudaGetLastError();
  } while (std::chrono::steady_clock::now() < until);
  check(cudaEventSynchronize(event), what);
}

// Chunks go through the halves in turn; a half is filled again when its last copy has left.
void upload(cudaStream_t stream, Staging& staging, unsigned char* to, const unsigned char* from, size_t nbytes) {
  while (nbytes > 0) {
    const size_t n = nbytes < Staging::kHalf ? nbytes : Staging::kHalf;
    const int half = staging.next;
    staging.next ^= 1;
    unsigned char* staged = staging.memory + static_cast<size_t>(half) * Staging::kHalf;
    wait_for(staging.copied[half], "upload");
    std::memcpy(staged, from, n);
    check(cudaMemcpyAsync(to, staged, n, cudaMemcpyHostToDevice, stream), "upload");
    check(cudaEventRecord(staging.copied[half], stream), "upload");
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
    wait_for(s.staging.copied[oldest], "data");
    std::memcpy(to + taken, s.staging.memory + static_cast<size_t>(oldest) * Staging::kHalf, sizes[oldest]);
    taken += sizes[oldest];
    oldest ^= 1;
  }
}

}  // namespace

void* allocate(Device& device, size_t nbytes) {
  open(device);
  check(cudaSetDevice(device.info().index), device.str().c_str());
  if (device.pool().cached_bytes() > 0 && !leaves_room(nbytes)) return nullptr;
  void* block = nullptr;
  const cudaError_t status = cudaMalloc(&block, nbytes);
  if (status != cudaErrorMemoryAllocation)
    check(status, device.str().c_str());
  else
    cudaGetLastError();
  return status == cudaSuccess ? block : nullptr;
}

void release(Device& device, void* block) {
  cudaSetDevice(device.info().index);
  cudaFree(block);  // waits for the kernels that use it
  cudaGetLastError();
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
    upload(s.stream(), s.staging, static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), nbytes);
  } else {
    download(s, static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), nbytes);
  }
}

void* fence(Device& device) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "offload");
  const cudaError_t status = cudaEventRecord(event, runtime_stream(device).stream());
  if (status != cudaSuccess) cudaEventDestroy(event);
  check(status, "offload");
  return event;
}

void copy_aside(Device& device, void* fence, void* to, const void* from, size_t nbytes) {
  RuntimeStream& s = runtime_stream(device);
  check(cudaSetDevice(s.device), "offload");
  make_aside(s);
  check(cudaStreamWaitEvent(s.aside, static_cast<cudaEvent_t>(fence), 0), "offload");
  upload(s.aside, s.aside_staging, static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), nbytes);
}

void end_aside(Device& device, void* fence) {
  RuntimeStream& s = runtime_stream(device);
  if (fence) cudaEventDestroy(static_cast<cudaEvent_t>(fence));
  if (s.aside) check(cudaStreamSynchronize(s.aside), "offload");
}

}  // namespace cuda
}  // namespace bnb
