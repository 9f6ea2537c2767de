// A device of one environment: its stream, its pool, and what it is. The CPU is one; a GPU is another with
// the same interface, reached through the Runtime table that csrc/cuda fills in.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/changes.h"
#include "core/gpu.h"
#include "core/kernel.h"
#include "core/pool.h"
#include "core/stream.h"

namespace bnb {

// The numbers cross to JavaScript (src/tensor/device.ts).
enum class DeviceType : int32_t { cpu, cuda };

struct DeviceInfo {
  DeviceType type;
  int32_t index;
  std::string name;        // "Intel(R) Xeon(R) ...", "NVIDIA H200"
  int64_t memory;          // bytes
  int32_t cc = 0;          // compute capability * 10; 0 on a CPU
  int32_t processors = 1;  // threads used by kernels, or multiprocessors
  std::string isa;         // "avx512"; empty on a GPU
  GpuInfo gpu{};           // what the choice of a GPU kernel depends on; zeros on a CPU
};

// What a device's memory can do. Functions that copy run on the stream's worker, in order.
struct Runtime {
  void* (*allocate)(Device&, size_t nbytes);  // null when out of memory
  void (*release)(Device&, void* block);      // on the worker: everything that used the block has run
  // Any direction; on the worker, which goes on when the bytes at `to` may be read and those at `from` changed.
  void (*copy)(Device&, void* to, const void* from, size_t nbytes);
  // The rest is null on a CPU. On the JavaScript thread: makes the device usable, if it is not yet. Throws Code::cuda
  // with the reason, which gpu_unavailable() has from then on.
  void (*open)(Device&) = nullptr;
  // On the worker, after its last command.
  void (*stop)(Device&) = nullptr;
  // On the worker: returns when everything launched has run, and throws what went wrong in it.
  void (*finish)(Device&) = nullptr;
  // Null where a graph is replayed command by command. On the worker: kernels launched between begin_capture and
  // capture become an executable, which replay launches. capture() ends the capture also when it throws, and leaves
  // nothing then, as abandon_capture() does, which does not throw.
  void (*begin_capture)(Device&) = nullptr;
  void* (*capture)(Device&) = nullptr;
  void (*abandon_capture)(Device&) = nullptr;
  void (*replay)(Device&, void* executable) = nullptr;
  void (*release_graph)(Device&, void* executable) = nullptr;
  // How bytes of the host come to a GPU beside its other work. fence(), on the worker, marks what was launched so far;
  // copy_aside() and end_aside(), on another thread, copy behind that mark, and wait for the copies and forget the
  // mark.
  void* (*fence)(Device&) = nullptr;
  void (*copy_aside)(Device&, void* fence, void* to, const void* from, size_t nbytes) = nullptr;
  void (*end_aside)(Device&, void* fence) = nullptr;
  // Fills a block whose first nbytes are about to be used with garbage; null except on an emulated device.
  void (*poison)(Device&, void* block, size_t nbytes, size_t capacity) = nullptr;
  // Runs a kernel that is wrong in a known way (emulation/broken.cu); null except on an emulated device.
  void (*provoke)(Device&, int32_t which) = nullptr;
};

class Device {
 public:
  Device(DeviceInfo info, const Runtime& runtime);
  ~Device();

  const DeviceInfo& info() const { return info_; }
  DeviceType type() const { return info_.type; }
  std::string str() const;  // "cpu", "cuda:0"
  const Runtime& runtime() const { return runtime_; }
  Stream& stream() { return stream_; }
  Pool& pool() { return pool_; }
  ChangeClock& changes() { return changes_; }
  // Grows when a tensor that exists gives up its memory (core/offload.h): addresses taken before may be wrong.
  uint64_t moves() const { return moves_; }
  void count_move() { moves_++; }
  // Handed to kernels that can meet bad data.
  Fault* fault() { return stream_.fault(); }
  // What the runtime keeps for this device; null on a CPU.
  CudaStream* cuda() { return stream_.cuda; }

 private:
  DeviceInfo info_;
  const Runtime& runtime_;
  ChangeClock changes_;
  uint64_t moves_ = 0;
  Pool pool_;  // destroyed after the stream has run what is queued
  Stream stream_;
};

std::unique_ptr<Device> make_cpu();
// Asks the driver, where this build has CUDA kernels, for the GPUs of this machine.
void append_gpus(std::vector<std::unique_ptr<Device>>& devices);
// Why no GPU, or not every GPU, is among those: one line with advice. Empty when none is missing.
std::string gpu_unavailable();
// What GPUs use beside the package's own kernels: one line; empty in a build without CUDA.
std::string gpu_libraries();

#if BNB_CUDA
// What csrc/cuda brings to a build that has it: by device.cc on the CUDA runtime, or by emulation/device.cc without.
namespace cuda {
void append_devices(std::vector<std::unique_ptr<Device>>& devices);
// Why a GPU of this machine is not among them, with advice; empty when none is missing.
std::string unavailable();
// What is used beside the package's own kernels, or why not: one line.
std::string libraries();
}  // namespace cuda
#endif

// Queues a kernel on the device's stream. Args must be trivially copyable and at most kMaxArgs bytes.
template <class Args>
void enqueue(const Kernel<Args>& kernel, Device& device, const Args& args) {
  device.stream().push(kernel, args);
}

}  // namespace bnb
