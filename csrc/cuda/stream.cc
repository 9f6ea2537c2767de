// The compute stream of a device, made when the device is opened and ended after the worker's last command; launches on
// it, and graphs of them.

#include <memory>
#include <utility>

#include "core/error.h"
#include "cuda/cublaslt.h"
#include "cuda/runtime.h"

namespace bnb::cuda {

// What a replay launches. Its kernels hold the addresses of the scratch memory that they had when they were captured.
struct Executable {
  cudaGraphExec_t handle = nullptr;
  std::vector<void*> scratch;
};

namespace {

void free_all(std::vector<void*>& blocks) {
  for (void* block : blocks) cudaFree(block);
  blocks.clear();
}

// Ends the capture, whatever became of it.
cudaError_t end_capture(RuntimeStream& s, cudaGraph_t* graph) {
  s.capturing = false;
  s.captured = {};
  if (s.inner_stream) s.inner_stream->captured = {};
  return cudaStreamEndCapture(s.stream(), graph);
}

void free_aside(RuntimeStream& s) {
  for (cudaEvent_t& event : s.aside_staging.copied)
    if (cudaEvent_t own = std::exchange(event, nullptr)) cudaEventDestroy(own);
  if (s.aside_staging.memory) cudaFreeHost(std::exchange(s.aside_staging.memory, nullptr));
  if (s.aside) cudaStreamDestroy(std::exchange(s.aside, nullptr));
}

}  // namespace

void make_aside(RuntimeStream& s) {
  if (s.aside_staging.copied[1]) return;
  check(cudaStreamCreateWithFlags(&s.aside, cudaStreamNonBlocking), "offload");
  check(cudaHostAlloc(reinterpret_cast<void**>(&s.aside_staging.memory), 2 * Staging::kHalf, cudaHostAllocDefault),
        "offload");
  for (cudaEvent_t& event : s.aside_staging.copied)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "offload");
}

std::string make_stream(RuntimeStream& s) {
  std::string why;
  const auto did = [&why](const char* call, cudaError_t status) {
    if (status == cudaSuccess) return true;
    cudaGetLastError();
    why = std::string(call) + ": " + explain(status);
    return false;
  };
  cudaStream_t stream = nullptr;
  if (!did("cudaHostAlloc", cudaHostAlloc(reinterpret_cast<void**>(&s.fault), sizeof(Fault), cudaHostAllocMapped)) ||
      !did("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)))
    return why;
  s.handle = stream;
  *s.fault = {};
  if (!did("cudaHostAlloc",
           cudaHostAlloc(reinterpret_cast<void**>(&s.staging.memory), 2 * Staging::kHalf, cudaHostAllocDefault)))
    return why;
  for (cudaEvent_t& event : s.staging.copied)
    if (!did("cudaEventCreateWithFlags",
             cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync)))
      return why;
  const size_t nbytes = kCounters * sizeof(int32_t);
  if (did("cudaMalloc", cudaMalloc(reinterpret_cast<void**>(&s.counters), nbytes)))
    did("cudaMemsetAsync", cudaMemsetAsync(s.counters, 0, nbytes, stream));
  return why;
}

void free_stream(RuntimeStream& s) {
  if (s.handle) {
    cudaStreamSynchronize(s.stream());
    cublaslt_forget(s);
  }
  for (cudaEvent_t& event : s.staging.copied) {
    if (event) cudaEventDestroy(event);
    event = nullptr;
  }
  free_aside(s);
  if (s.staging.memory) cudaFreeHost(s.staging.memory);
  if (s.counters) cudaFree(s.counters);
  if (s.eager.block) cudaFree(s.eager.block);
  if (s.inner_stream && s.inner_stream->eager.block) cudaFree(s.inner_stream->eager.block);
  if (s.handle) cudaStreamDestroy(s.stream());
  if (s.fault) cudaFreeHost(s.fault);
  cudaGetLastError();
  delete s.inner_stream;
  s.inner_stream = nullptr;
  s.staging.memory = nullptr;
  s.counters = nullptr;
  s.eager = {};
  s.handle = nullptr;
  s.fault = nullptr;
}

void finish(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  if (s.is_open) check(cudaStreamSynchronize(s.stream()), device.str().c_str());
}

void stop(Device& device) {
  if (!device.cuda()) return;  // it was never made
  RuntimeStream& s = runtime_stream(device);
  if (s.is_open) free_stream(s);
  delete &s;
}

void begin_capture(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  // Relaxed: scratch memory is allocated meanwhile, here, and tensors on the JavaScript thread.
  check(cudaStreamBeginCapture(s.stream(), cudaStreamCaptureModeRelaxed), "graph");
  s.capturing = true;
}

void* capture(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  cudaGraph_t graph = nullptr;
  auto executable = std::make_unique<Executable>();
  cudaError_t status = end_capture(s, &graph);
  if (status == cudaSuccess) status = cudaGraphInstantiate(&executable->handle, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (status != cudaSuccess) free_all(s.graph_blocks);
  check(status, "graph");
  executable->scratch = std::move(s.graph_blocks);
  s.graph_blocks.clear();
  return executable.release();
}

void abandon_capture(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  cudaGraph_t graph = nullptr;
  end_capture(s, &graph);
  if (graph) cudaGraphDestroy(graph);
  free_all(s.graph_blocks);
  cudaGetLastError();
}

void replay(Device& device, void* executable) {
  check(cudaGraphLaunch(static_cast<Executable*>(executable)->handle, runtime_stream(device).stream()), "graph");
}

void release_graph(Device& device, void* executable) {
  const std::unique_ptr<Executable> e(static_cast<Executable*>(executable));
  cudaStreamSynchronize(runtime_stream(device).stream());
  cudaGraphExecDestroy(e->handle);
  free_all(e->scratch);
  cudaGetLastError();
}

void allow_shared(CudaStream& s, const void* kernel, size_t shared) {
  auto found = s.runtime->most_dynamic.find(kernel);
  if (found == s.runtime->most_dynamic.end()) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "launch");
    const size_t most = static_cast<size_t>(s.gpu.shared_per_block) - attributes.sharedSizeBytes;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)), "launch");
    found = s.runtime->most_dynamic.emplace(kernel, most).first;
  }
  if (shared > found->second)
    fail(Code::shape, "launch", "the shape is too large for a block: it needs ", shared,
         " bytes of dynamic shared memory, and the card has ", found->second, " left for it");
}

void copy_and_wait(CudaStream& s, void* to, const void* from, size_t nbytes) {
  auto stream = static_cast<cudaStream_t>(s.handle);
  check(cudaMemcpyAsync(to, from, nbytes, cudaMemcpyDefault, stream), "copy");
  check(cudaStreamSynchronize(stream), "copy");
}

void check_launch(const char* what) { check(cudaGetLastError(), what); }

}  // namespace bnb::cuda
