// GPUs that are not there: the runtime's functions on memory of this process, kernels run by simt.cc on the stream's
// worker. BNB_EMULATED_DEVICES gives their number (default 1, 0 for none), BNB_EMULATED_CC their compute capability
// (default 90).

#include "core/device.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include "cuda/cublaslt.h"
#include "cuda/emulation/broken.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/simt.h"
#include "cuda/stream.h"

namespace bnb {
namespace {

constexpr int64_t kMemory = int64_t{4} << 30;
constexpr uint32_t kPoison = 0x7fa0dead;  // a signalling NaN

std::atomic<bool> lost{false};

int number_from(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::atoi(text) : otherwise;
}

void check_alive() {
  if (lost)
    fail(Code::cuda, "emulated device", "a kernel stopped with a fault; the process must restart to use it again");
}

void* allocate(Device& device, size_t nbytes) {
  const size_t held = device.pool().live_bytes() + device.pool().cached_bytes();
  if (nbytes > static_cast<size_t>(kMemory) || held > static_cast<size_t>(kMemory) - nbytes) return nullptr;
  return cuda::arena_allocate(nbytes);
}

void release(Device&, void* block) { cuda::arena_release(block); }

void copy(Device&, void* to, const void* from, size_t nbytes) {
  check_alive();
  std::memcpy(to, from, nbytes);
}

// Kernels are done when they are launched: there is nothing to copy behind.
void copy_aside(Device& device, void*, void* to, const void* from, size_t nbytes) { copy(device, to, from, nbytes); }

void finish(Device&) { check_alive(); }

void fill_with_poison(void* block, size_t nbytes) {
  auto* words = static_cast<uint32_t*>(block);
  for (size_t i = 0; i < nbytes / sizeof kPoison; i++) words[i] = kPoison;
  std::memcpy(words + nbytes / sizeof kPoison, &kPoison, nbytes % sizeof kPoison);
}

void poison(Device&, void* block, size_t nbytes, size_t capacity) {
  cuda::arena_resize(block, nbytes, capacity);
  fill_with_poison(block, nbytes);
}

void stop(Device& device) {
  CudaStream* s = device.cuda();
  if (!s) return;  // it was never made
  cuda::cublaslt_forget(*s);
  for (CudaStream* t : {s, s->inner_stream})
    if (t && t->eager.block) cuda::arena_release(t->eager.block);
  delete s->inner_stream;
  cuda::arena_release(s->counters);
  cuda::arena_release(device.stream().fault());
  delete s;
}

void provoke(Device& device, int32_t which) { cuda::launch_broken(*device.cuda(), which); }

constexpr Runtime kEmulated = {.allocate = allocate,
                               .release = release,
                               .copy = copy,
                               .stop = stop,
                               .finish = finish,
                               .copy_aside = copy_aside,
                               .poison = poison,
                               .provoke = provoke};

// The kernels that were allowed more shared memory than all have, each on a device, which its counters tell.
struct Allowed {
  std::mutex mutex;
  std::set<std::pair<const void*, const int32_t*>> kernels;
};
Allowed& allowed() {
  static auto* all = new Allowed;
  return *all;
}

// What the cards of a compute capability offer one block, in KB.
int64_t shared_per_block(int32_t cc) {
  const int kb = cc < 80 ? 64 : cc == 80 ? 163 : cc < 90 || cc >= 120 ? 99 : 227;
  return int64_t{kb} << 10;
}

}  // namespace

void* CudaStream::scratch(size_t nbytes) {
  if (nbytes == 0) return eager.block;
  if (nbytes > eager.capacity) {
    if (eager.block) cuda::arena_release(eager.block);
    eager.block = cuda::arena_allocate(nbytes);
    eager.capacity = eager.block ? nbytes : 0;
    if (!eager.block) fail(Code::oom, "scratch", "out of device memory: wanted ", nbytes, " bytes");
  }
  cuda::arena_resize(eager.block, nbytes, eager.capacity);
  fill_with_poison(eager.block, nbytes);
  return eager.block;
}

namespace cuda {

void device_trapped() { lost = true; }
void check_launch(const char*) { check_alive(); }

void allow_shared(CudaStream& s, const void* kernel, size_t) {
  const std::lock_guard lock(allowed().mutex);
  allowed().kernels.emplace(kernel, s.counters);
}

void launch_emulated(CudaStream& s, const void* kernel, dim3 grid, dim3 block, size_t shared,
                     std::function<void()> body) {
  size_t limit = simt::kDefaultShared;
  {
    const std::lock_guard lock(allowed().mutex);
    if (allowed().kernels.contains({kernel, s.counters})) limit = static_cast<size_t>(s.gpu.shared_per_block);
  }
  try {
    simt::launch(grid, block, shared, limit, body);
  } catch (...) {  // and a GPU would be lost, but here other kernels follow
    for (int i = 0; i < kCounters; i++) s.counters[i] = 0;
    throw;
  }
}

void copy_and_wait(CudaStream&, void* to, const void* from, size_t nbytes) {
  check_alive();
  std::memcpy(to, from, nbytes);
}

std::string libraries() { return std::string("cuBLASLt: ") + (cublaslt_present(), cublaslt_status()); }

std::string unavailable() { return number_from("BNB_EMULATED_DEVICES", 1) > 0 ? "" : "BNB_EMULATED_DEVICES is 0"; }

void append_devices(std::vector<std::unique_ptr<Device>>& devices) {
  const int count = number_from("BNB_EMULATED_DEVICES", 1), cc = number_from("BNB_EMULATED_CC", 90);
  for (int i = 0; i < count; i++) {
    DeviceInfo info;
    info.type = DeviceType::cuda;
    info.index = i;
    info.name = "emulated GPU";
    info.memory = kMemory;
    info.cc = cc;
    info.processors = 4;
    info.gpu = {
        .cc = cc, .sms = 4, .shared_per_block = shared_per_block(cc), .l2_bytes = 4 << 20, .has_cublaslt = false};
    devices.push_back(std::make_unique<Device>(info, kEmulated));
    auto* stream = new CudaStream;
    stream->gpu = info.gpu;
    stream->counters = static_cast<int32_t*>(arena_allocate(kCounters * sizeof(int32_t)));
    std::memset(stream->counters, 0, kCounters * sizeof(int32_t));
    devices.back()->stream().set_fault(new (arena_allocate(sizeof(Fault))) Fault{});
    devices.back()->stream().cuda = stream;
  }
}

}  // namespace cuda
}  // namespace bnb
