// The fake runtime's memory: the emulator's, where a kernel that touches what is not live is stopped.

#include "cuda/emulation/memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/fake/state.h"

using fake::Block;
using fake::counted;
using fake::done;
using fake::state;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace {

constexpr int kGarbage = 0xff;               // NaN in every float type
constexpr size_t kFilled = size_t{1} << 20;  // of the beginning of a block

size_t memory_of_device() {
  const char* text = std::getenv("BNB_FAKE_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t{1} << 30;
}

size_t used_of(int device) {
  size_t used = 0;
  for (const auto& [p, block] : state().blocks) used += block.device == device ? block.nbytes : 0;
  return used;
}

// While it captures in any but the relaxed mode, a thread may not allocate.
bool forbidden_by_capture() {
  bool any = false;
  for (FakeStream* s : state().streams) {
    if (!s->capturing || s->mode == cudaStreamCaptureModeRelaxed) continue;
    s->invalid = true;
    any = true;
  }
  return any;
}

cudaError_t take(void** block, size_t nbytes, int device) {
  *block = bnb::cuda::arena_allocate(nbytes);
  if (!*block) return cudaErrorMemoryAllocation;
  std::memset(*block, kGarbage, std::min(nbytes, kFilled));
  state().blocks[*block] = {nbytes, device};
  return cudaSuccess;
}

// Frees also when it is to fail: what CUDA reports here is what went wrong earlier.
cudaError_t give_back(void* block, cudaError_t status, bool of_host) {
  if (!block) return status;
  const auto found = state().blocks.find(block);
  if (found == state().blocks.end() || (found->second.device < 0) != of_host) {
    fake::complain("memory is freed that is not there");
    return cudaErrorInvalidValue;
  }
  for (FakeStream* s : state().streams)
    if (of_host || s->device == found->second.device) fake::drain(*s);
  state().blocks.erase(found);
  bnb::cuda::arena_release(block);
  return status;
}

// The block that [p, p + nbytes) lies in; null for memory that the runtime does not know.
const Block* block_at(const void* p, size_t nbytes) {
  auto found = state().blocks.upper_bound(p);
  if (found == state().blocks.begin()) return nullptr;
  found--;
  const auto* begin = static_cast<const char*>(found->first);
  const auto* at = static_cast<const char*>(p);
  return at + nbytes <= begin + found->second.nbytes ? &found->second : nullptr;
}

}  // namespace

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  const Lock lock(state().mutex);
  *total = memory_of_device();
  *available = *total - used_of(fake::current_device());
  return done(counted(__func__));
}

cudaError_t cudaMalloc(void** block, size_t nbytes) {
  const Lock lock(state().mutex);
  cudaError_t status = counted(__func__, cudaErrorMemoryAllocation);
  if (status == cudaSuccess && forbidden_by_capture()) status = cudaErrorStreamCaptureUnsupported;
  const int device = fake::current_device();
  if (status == cudaSuccess && used_of(device) + nbytes > memory_of_device()) status = cudaErrorMemoryAllocation;
  return done(status == cudaSuccess ? take(block, nbytes, device) : status);
}

cudaError_t cudaFree(void* block) {
  const Lock lock(state().mutex);
  return done(give_back(block, counted(__func__), false));
}

cudaError_t cudaHostAlloc(void** block, size_t nbytes, unsigned) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__, cudaErrorMemoryAllocation);
  return done(status == cudaSuccess ? take(block, nbytes, -1) : status);
}

cudaError_t cudaFreeHost(void* block) {
  const Lock lock(state().mutex);
  return done(give_back(block, counted(__func__), true));
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  const Lock lock(state().mutex);
  const Block* block = block_at(p, 1);
  *attributes = {!block               ? cudaMemoryTypeUnregistered
                 : block->device >= 0 ? cudaMemoryTypeDevice
                                      : cudaMemoryTypeHost,
                 block ? block->device : 0};
  return done(counted(__func__));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t nbytes, cudaMemcpyKind, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (const cudaError_t status = counted(__func__); status != cudaSuccess) return done(status);
  const Block *target = block_at(to, nbytes), *source = block_at(from, nbytes);
  if ((!target && bnb::cuda::is_arena(to)) || (!source && bnb::cuda::is_arena(from))) {
    fake::complain("a copy of memory that is not live");
    return done(cudaErrorInvalidValue);
  }
  // Memory that is not pinned is read before the call returns, and written before it does.
  std::shared_ptr<std::string> staged;
  if (!source) staged = std::make_shared<std::string>(static_cast<const char*>(from), nbytes);
  const cudaError_t status = fake::submit(stream, [=] { std::memcpy(to, staged ? staged->data() : from, nbytes); });
  if (status == cudaSuccess && !target) fake::drain(*stream);
  return done(status);
}

cudaError_t cudaMemsetAsync(void* block, int value, size_t nbytes, cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (const cudaError_t status = counted(__func__); status != cudaSuccess) return done(status);
  return done(fake::submit(stream, [=] { std::memset(block, value, nbytes); }));
}
