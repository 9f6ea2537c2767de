// The compute stream of a device: made by the worker before its first command, ended after its last.

#include "core/error.h"
#include "cuda/runtime.h"

namespace bnb::cuda {

void start(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  check(cudaSetDevice(s.device), "start");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "start");
  s.handle = stream;
  check(cudaHostAlloc(reinterpret_cast<void**>(&s.staging.memory), 2 * Staging::kHalf, cudaHostAllocDefault), "start");
  for (cudaEvent_t& event : s.staging.copied)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync), "start");
  check(cudaMalloc(reinterpret_cast<void**>(&s.counters), kCounters * sizeof(int32_t)), "start");
  check(cudaMemsetAsync(s.counters, 0, kCounters * sizeof(int32_t), stream), "start");
}

void finish(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  check(cudaSetDevice(s.device), device.str().c_str());
  check(cudaStreamSynchronize(s.stream()), device.str().c_str());
}

void stop(Device& device) {
  RuntimeStream* s = &runtime_stream(device);
  if (s->handle) {
    cudaStreamSynchronize(s->stream());
    for (cudaEvent_t event : s->staging.copied)
      if (event) cudaEventDestroy(event);
    cudaFreeHost(s->staging.memory);
    cudaFree(s->counters);
    cudaFree(s->scratch_block);
    if (s->inner_stream) cudaFree(s->inner_stream->scratch_block);
    cudaStreamDestroy(s->stream());
  }
  cudaFreeHost(s->fault);
  cudaGetLastError();
  delete s->inner_stream;
  delete s;
}

void begin_capture(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  // Thread-local: the JavaScript thread may allocate meanwhile.
  check(cudaStreamBeginCapture(s.stream(), cudaStreamCaptureModeThreadLocal), "graph");
  s.capturing = true;
}

void* capture(Device& device) {
  RuntimeStream& s = runtime_stream(device);
  s.capturing = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(s.stream(), &graph), "graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "graph");
  return executable;
}

void replay(Device& device, void* executable) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable), runtime_stream(device).stream()), "graph");
}

void release_graph(Device& device, void* executable) {
  cudaStreamSynchronize(runtime_stream(device).stream());
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable));
}

void copy_and_wait(CudaStream& s, void* to, const void* from, size_t nbytes) {
  auto stream = static_cast<cudaStream_t>(s.handle);
  check(cudaMemcpyAsync(to, from, nbytes, cudaMemcpyDefault, stream), "copy");
  check(cudaStreamSynchronize(stream), "copy");
}

void check_launch(const char* what) { check(cudaGetLastError(), what); }

}  // namespace bnb::cuda
