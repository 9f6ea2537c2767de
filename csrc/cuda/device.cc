// Finds the GPUs that this build has code for. A machine without a driver has none: that is no error until one is
// asked for, and then `unavailable()` says why.

#include "core/device.h"

#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/probe.h"
#include "cuda/runtime.h"

namespace bnb::cuda {
namespace {

constexpr Runtime kRuntime = {.allocate = allocate,
                              .release = release,
                              .copy = copy,
                              .stop = stop,
                              .finish = finish,
                              .begin_capture = begin_capture,
                              .capture = capture,
                              .replay = replay,
                              .release_graph = release_graph};

std::string explain(cudaError_t status) {
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
    default: return std::string("the CUDA runtime says: ") + cudaGetErrorString(status);
  }
}

std::string& reason() {
  static std::string* text = new std::string;
  return *text;
}

// Whether this binary has code that the card can run: of its own architecture, or PTX to compile.
bool has_code_for_current_device() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, probe_kernel()) == cudaSuccess;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears what is not sticky
  if (is_sticky(status))
    fail(Code::cuda, what, cudaGetErrorString(status),
         " (a kernel stopped with a fault; the process must restart to use the GPU again)");
  if (status == cudaErrorMemoryAllocation) fail(Code::oom, what, "out of device memory");
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion)
    fail(Code::cuda, what, "this build has no code for the GPU's architecture (rebuild with BNB_CUDA_ARCHS)");
  fail(Code::cuda, what, cudaGetErrorString(status));
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

const std::string& unavailable() { return reason(); }

std::string libraries() { return std::string("cuBLASLt: ") + (cublaslt_present(), cublaslt_status()); }

void append_devices(std::vector<std::unique_ptr<Device>>& devices) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    reason() = explain(status == cudaSuccess ? cudaErrorNoDevice : status);
    return;
  }
  for (int i = 0; i < count; i++) {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, i) != cudaSuccess) continue;
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
      reason() = info.name + " has compute capability " + std::to_string(p.major) + "." + std::to_string(p.minor) +
                 ", at least 7.5 is needed";
      continue;
    }
    auto device = std::make_unique<Device>(info, kRuntime);
    auto* stream = new RuntimeStream;
    stream->gpu = info.gpu;
    stream->device = i;
    // The cell of faults is handed to kernels from the first op on.
    if (cudaSetDevice(i) != cudaSuccess ||
        cudaHostAlloc(reinterpret_cast<void**>(&stream->fault), sizeof(Fault), cudaHostAllocMapped) != cudaSuccess) {
      reason() = explain(cudaGetLastError());
      delete stream;
      continue;
    }
    if (!has_code_for_current_device()) {
      cudaGetLastError();
      reason() = info.name + ": this build has no code for compute capability " + std::to_string(info.cc / 10) + "." +
                 std::to_string(info.cc % 10) + " (rebuild with BNB_CUDA_ARCHS=" + std::to_string(info.cc) + ")";
      cudaFreeHost(stream->fault);
      delete stream;
      continue;
    }
    *stream->fault = {};
    device->stream().cuda = stream;
    device->stream().set_fault(stream->fault);
    device->stream().push_always(
        "start", 0, +[](Device& d, const int&) { start(d); });
    devices.push_back(std::move(device));
  }
}

}  // namespace bnb::cuda
