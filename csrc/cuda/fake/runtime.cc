// The fake runtime's devices, errors, kernels and report; memory.cc and streams.cc have the rest.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/simt.h"
#include "cuda/fake/state.h"

namespace fake {
namespace {

thread_local int device_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;

// As fail_on, fail_at and fail_name of BNB_FAKE_FAIL say.
void arm(State& s) {
  const char* text = std::getenv("BNB_FAKE_FAIL");
  const std::string wanted = text ? text : "";
  const size_t colon = wanted.find(':');
  s.fail_name = colon == std::string::npos ? "" : wanted.substr(0, colon);
  s.fail_at = std::strtoull(wanted.c_str() + (colon == std::string::npos ? 0 : colon + 1), nullptr, 10);
  s.fail_on = !wanted.empty() && wanted.back() == '+';
  s.calls = s.of_name = 0;
  s.failed.clear();
  s.broken.clear();
}

}  // namespace

State& state() {
  static State* s = new State;
  return *s;
}

int current_device() { return device_of_thread; }

cudaError_t counted(const char* name, cudaError_t error) {
  State& s = state();
  s.calls++;
  if (s.fail_at == 0) return s.broken.empty() ? cudaSuccess : cudaErrorIllegalAddress;
  const uint64_t at = s.fail_name.empty() ? s.calls : s.fail_name == name ? ++s.of_name : 0;
  if (at == s.fail_at) s.failed = name;
  if (s.fail_on && at >= s.fail_at) return cudaErrorIllegalAddress;
  if (at == s.fail_at) return error;
  return s.broken.empty() ? cudaSuccess : cudaErrorIllegalAddress;
}

cudaError_t done(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

void complain(const std::string& what) {
  std::fprintf(stderr, "fake CUDA: %s\n", what.c_str());
  state().complaints.push_back(what);
}

}  // namespace fake

using fake::counted;
using fake::done;
using fake::State;
using fake::state;
using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t cudaDriverGetVersion(int* version) {
  const Lock lock(state().mutex);
  *version = 13000;
  return done(counted(__func__));
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  const Lock lock(state().mutex);
  *version = 13000;
  return done(counted(__func__));
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error != cudaErrorIllegalAddress || state().broken.empty()) {
    static thread_local char text[32];
    std::snprintf(text, sizeof text, "fake error %d", static_cast<int>(error));
    return text;
  }
  return state().broken.c_str();
}

cudaError_t cudaGetLastError() { return std::exchange(fake::last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(state().mutex);
  fake::arm(state());
  const char* text = std::getenv("BNB_FAKE_DEVICES");
  *count = text ? std::atoi(text) : 2;
  return done(counted(__func__, cudaErrorInsufficientDriver));
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  const Lock lock(state().mutex);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "fake GPU %d", device);
  p->totalGlobalMem = size_t{1} << 30;
  p->sharedMemPerBlockOptin = fake::kSharedPerBlock;
  p->major = 9;
  p->multiProcessorCount = 4;
  p->l2CacheSize = 4 << 20;
  return done(counted(__func__));
}

cudaError_t cudaSetDevice(int device) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__, cudaErrorMemoryAllocation);
  if (status != cudaSuccess) return done(status);
  fake::device_of_thread = device;
  state().contexts.insert(device);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  const Lock lock(state().mutex);
  attributes->sharedSizeBytes = fake::kStaticShared;
  return done(counted(__func__, cudaErrorNoKernelImageForDevice));
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  if (value < 0 || static_cast<size_t>(value) + fake::kStaticShared > fake::kSharedPerBlock)
    return done(cudaErrorInvalidValue);
  state().dynamic_shared[{kernel, fake::current_device()}] = static_cast<size_t>(value);
  return cudaSuccess;
}

namespace bnb::cuda {

void device_trapped() {}

// A launch reports nothing itself: check_launch() asks.
void launch_emulated(CudaStream& s, const void* kernel, dim3 grid, dim3 block, size_t shared,
                     std::function<void()> body) {
  const Lock lock(state().mutex);
  auto* stream = static_cast<FakeStream*>(s.handle);
  if (const cudaError_t status = counted("cudaLaunchKernel", cudaErrorUnknown); status != cudaSuccess) {
    done(status);
    return;
  }
  if (!stream || stream->device != fake::current_device()) {
    fake::complain(stream ? "a launch on a stream of another device" : "a launch on the default stream");
    done(cudaErrorInvalidResourceHandle);
    return;
  }
  const auto allowed = state().dynamic_shared.find({kernel, stream->device});
  const bool by_default = allowed == state().dynamic_shared.end();
  if (shared > (by_default ? simt::kDefaultShared - fake::kStaticShared : allowed->second)) {
    done(cudaErrorInvalidValue);
    return;
  }
  const size_t limit = by_default ? simt::kDefaultShared : fake::kSharedPerBlock;
  done(fake::submit(stream, [=] {
    const std::function<void()> here = body;  // on the stack, where the emulator lets a kernel read its arguments
    simt::launch(grid, block, shared, limit, here);
  }));
}

bool cublaslt_present() { return false; }
bool cublaslt_matmul(const MatmulArgs&, CudaStream&) { return false; }
// How a test looks inside: there is no library to tell of.
void cublaslt_forget(const CudaStream&) {}
const char* cublaslt_status() {
  static thread_local std::string text;
  const Lock lock(state().mutex);
  const State& s = state();
  size_t device = 0;
  for (const auto& [p, block] : s.blocks) device += block.device >= 0;
  const auto number = [](size_t n) { return std::to_string(n); };
  text = "{\"calls\":" + number(s.calls) + ",\"failed\":\"" + s.failed +
         "\",\"contexts\":" + number(s.contexts.size()) + ",\"live\":{\"device\":" + number(device) +
         ",\"host\":" + number(s.blocks.size() - device) + ",\"streams\":" + number(s.streams.size()) +
         ",\"events\":" + number(s.events.size()) + ",\"graphs\":" + number(s.graphs.size()) +
         ",\"executables\":" + number(s.executables.size()) + "},\"complaints\":" + number(s.complaints.size()) + "}";
  return text.c_str();
}

}  // namespace bnb::cuda
