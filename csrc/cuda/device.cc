// Finds the GPUs that this build has code for. A machine without a driver has none: that is no error until one is
// asked for, and then `unavailable()` says why.

#include "core/device.h"

#include <map>
#include <mutex>

#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace bnb::cuda {
namespace {

constexpr Runtime kRuntime = {.allocate = allocate,
                              .release = release,
                              .copy = copy,
                              .open = open,
                              .stop = stop,
                              .finish = finish,
                              .begin_capture = begin_capture,
                              .capture = capture,
                              .abandon_capture = abandon_capture,
                              .replay = replay,
                              .release_graph = release_graph,
                              .fence = fence,
                              .copy_aside = copy_aside,
                              .end_aside = end_aside};

// Why a GPU cannot be used, by its index; -1 where none can. Of all environments.
struct Reasons {
  std::mutex mutex;
  std::map<int, std::string> of;
};
Reasons& reasons() {
  static auto* all = new Reasons;
  return *all;
}

// An empty reason: it can be used.
void set_reason(int device, const std::string& text) {
  const std::lock_guard lock(reasons().mutex);
  if (text.empty())
    reasons().of.erase(device);
  else
    reasons().of[device] = text;
}

std::string explain_enumeration(cudaError_t status) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  switch (status) {
    case cudaErrorInsufficientDriver:
      return driver == 0 ? "no NVIDIA driver is installed"
                         : "the NVIDIA driver supports CUDA " + version(driver) + ", this build needs " +
                               version(runtime) + ": update the driver (580 or newer for CUDA 13)";
    case cudaErrorNoDevice: return "the NVIDIA driver finds no GPU (is it hidden by CUDA_VISIBLE_DEVICES?)";
    default: return "the CUDA runtime says: " + explain(status);
  }
}

// Whether this binary has code that the card can run, of its own architecture or PTX to compile; makes the context.
std::string try_device(RuntimeStream& s) {
  cudaError_t status = cudaSetDevice(s.device);
  if (status != cudaSuccess) return "cudaSetDevice: " + explain(status);
  cudaFuncAttributes attributes;
  status = cudaFuncGetAttributes(&attributes, probe_kernel());
  return status == cudaSuccess ? make_stream(s) : explain(status);
}

}  // namespace

void open(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  if (s.is_open) return;
  // A read may be under way, which looks at the cell of faults.
  device.stream().wait();
  std::string why = try_device(s);
  if (why.empty()) {
    // The worker's launches go to the device that is current in its thread.
    struct Start {
      int device;
      cudaError_t status;
    } start{s.device, cudaSuccess};
    device.stream().push_always(
        "start", &start, +[](Device&, Start* const& r) {
          r->status = cudaSetDevice(r->device);
          // Or the next launch would report it.
          if (r->status != cudaSuccess) cudaGetLastError();
        });
    device.stream().wait();
    if (start.status != cudaSuccess) why = "cudaSetDevice: " + explain(start.status);
  }
  if (!why.empty()) {
    free_stream(s);
    why = device.info().name + ": " + why;
    set_reason(s.device, why);
    fail(Code::cuda, device.str().c_str(), "the GPU cannot be used: ", why);
  }
  set_reason(s.device, "");
  device.stream().set_fault(s.fault);
  s.is_open = true;
}

std::string explain(cudaError_t status) {
  const std::string words = cudaGetErrorString(status);
  if (is_sticky(status))
    return words + " (a kernel stopped with a fault; the process must restart to use the GPU again)";
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion)
    return "this build has no code for the GPU's architecture (rebuild with BNB_CUDA_ARCHS)";
  return words;
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears what is not sticky
  if (status == cudaErrorMemoryAllocation) fail(Code::oom, what, "out of device memory");
  fail(Code::cuda, what, explain(status));
}

bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert: return true;
    default: return false;
  }
}

std::string unavailable() {
  const std::lock_guard lock(reasons().mutex);
  std::string all;
  for (const auto& [device, text] : reasons().of) all += (all.empty() ? "" : "; ") + text;
  return all;
}

std::string libraries() { return std::string("cuBLASLt: ") + (cublaslt_present(), cublaslt_status()); }

// Asks what there is and opens none of it: a context takes hundreds of megabytes of each GPU.
void append_devices(std::vector<std::unique_ptr<Device>>& devices) {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count == 0) status = cudaErrorNoDevice;
  set_reason(-1, status == cudaSuccess ? "" : explain_enumeration(status));
  if (status != cudaSuccess) {
    cudaGetLastError();
    return;
  }
  for (int i = 0; i < count; i++) {
    cudaDeviceProp p;
    status = cudaGetDeviceProperties(&p, i);
    if (status != cudaSuccess) {
      cudaGetLastError();
      set_reason(i, "GPU " + std::to_string(i) + ": " + explain(status));
      continue;
    }
    DeviceInfo info;
    info.type = DeviceType::cuda;
    info.index = i;
    info.name = p.name;
    info.memory = static_cast<int64_t>(p.totalGlobalMem);
    info.cc = p.major * 10 + p.minor;
    info.processors = p.multiProcessorCount;
    info.gpu = {.cc = info.cc,
                .sms = p.multiProcessorCount,
                .shared_per_block = static_cast<int64_t>(p.sharedMemPerBlockOptin),
                .l2_bytes = p.l2CacheSize,
                .has_cublaslt = false};
    if (info.cc < 75) {
      set_reason(i, info.name + " has compute capability " + std::to_string(p.major) + "." + std::to_string(p.minor) +
                        ", at least 7.5 is needed");
      continue;
    }
    devices.push_back(std::make_unique<Device>(info, kRuntime));
    auto* stream = new RuntimeStream;
    stream->gpu = info.gpu;
    stream->device = i;
    stream->runtime = stream;
    devices.back()->stream().cuda = stream;
  }
}

}  // namespace bnb::cuda
