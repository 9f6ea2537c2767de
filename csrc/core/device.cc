// The CPU device, and the way to the GPUs.

#include "core/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/isa.h"
#include "core/system.h"
#include "core/thread_pool.h"

namespace bnb {
namespace {

constexpr size_t kAlignment = 64;
// From here on, blocks are aligned for and ask for huge pages: streaming a weight then misses the TLB less.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeBlock = size_t{8} << 20;

void* cpu_allocate(Device& device, size_t nbytes) {
  // The system would promise more than there is and kill the process when it is touched.
  const size_t held = device.pool().live_bytes() + device.pool().cached_bytes();
  const size_t memory = static_cast<size_t>(device.info().memory);
  if (nbytes > memory || held > memory - nbytes) return nullptr;
  if (nbytes < kHugeBlock) return std::aligned_alloc(kAlignment, (nbytes + kAlignment - 1) / kAlignment * kAlignment);
  void* block = std::aligned_alloc(kHugePage, (nbytes + kHugePage - 1) / kHugePage * kHugePage);
  if (block) ask_for_huge_pages(block, nbytes);
  return block;
}

void cpu_release(Device&, void* block) { std::free(block); }

void cpu_copy(Device&, void* to, const void* from, size_t nbytes) { std::memcpy(to, from, nbytes); }

constexpr Runtime kCpuRuntime = {cpu_allocate, cpu_release, cpu_copy};

}  // namespace

Device::Device(DeviceInfo info, const Runtime& runtime)
    : info_(std::move(info)), runtime_(runtime), pool_(*this), stream_(*this) {}

Device::~Device() = default;

std::string Device::str() const {
  return info_.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(info_.index);
}

std::unique_ptr<Device> make_cpu() {
  DeviceInfo cpu;
  cpu.type = DeviceType::cpu;
  cpu.index = 0;
  cpu.name = cpu_name();
  cpu.memory = physical_memory();
  cpu.processors = thread_count();
  cpu.isa = isa_name();
  return std::make_unique<Device>(std::move(cpu), kCpuRuntime);
}

void append_gpus([[maybe_unused]] std::vector<std::unique_ptr<Device>>& devices) {
#if BNB_CUDA
  cuda::append_devices(devices);
#endif
}

std::string gpu_unavailable() {
#if BNB_CUDA
  return cuda::unavailable();
#else
  return "this build has no CUDA kernels";
#endif
}

std::string gpu_libraries() {
#if BNB_CUDA
  return cuda::libraries();
#else
  return "";
#endif
}

}  // namespace bnb
