// The fake runtime's streams, events and graphs. Nothing runs before somebody waits for it.

#include <exception>

#include "cuda/fake/state.h"

using fake::counted;
using fake::done;
using fake::state;
using Lock = std::lock_guard<std::recursive_mutex>;

namespace fake {

void drain(FakeStream& stream) {
  while (!stream.queue.empty()) {
    const FakeWork work = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (!state().broken.empty()) continue;
    try {
      work();
    } catch (const std::exception& error) {
      state().broken = error.what();
    }
  }
}

cudaError_t submit(FakeStream* stream, FakeWork work) {
  if (!state().streams.contains(stream)) {
    complain("work for a stream that is not there");
    return cudaErrorInvalidResourceHandle;
  }
  if (stream->capturing)
    stream->captured.push_back(std::move(work));
  else
    stream->queue.push_back(std::move(work));
  return cudaSuccess;
}

namespace {

// What went wrong in the work of a stream that is waited for. Nobody may wait for one that is capturing.
cudaError_t wait_for(FakeStream& stream, cudaError_t status) {
  if (stream.capturing) {
    stream.invalid = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  drain(stream);
  if (status != cudaSuccess) return status;
  return state().broken.empty() ? cudaSuccess : cudaErrorIllegalAddress;
}

// Removes what is to be destroyed, which must be there.
template <class T>
cudaError_t destroy(std::set<T*>& all, T* object, cudaError_t status, const char* what) {
  if (all.erase(object) == 0) {
    complain(std::string(what) + " is destroyed that is not there");
    return cudaErrorInvalidResourceHandle;
  }
  delete object;
  return status;
}

}  // namespace
}  // namespace fake

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  *stream = new FakeStream;
  (*stream)->device = fake::current_device();
  state().streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (state().streams.contains(stream)) fake::drain(*stream);
  return done(fake::destroy(state().streams, stream, status, "a stream"));
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (!state().streams.contains(stream)) {
    fake::complain("a stream is waited for that is not there");
    return done(cudaErrorInvalidResourceHandle);
  }
  return done(fake::wait_for(*stream, status));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  *event = new FakeEvent;
  (*event)->device = fake::current_device();
  state().events.insert(*event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(state().mutex);
  return done(fake::destroy(state().events, event, counted(__func__), "an event"));
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  event->stream = stream;
  return cudaSuccess;
}

// What comes on the stream from here on finds done what the event marks.
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  if (event->stream) fake::wait_for(*event->stream, cudaSuccess);
  return cudaSuccess;
}

// The first look is always too early.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  FakeStream* stream = std::exchange(event->stream, nullptr);
  if (!stream) return state().broken.empty() ? cudaSuccess : done(cudaErrorIllegalAddress);
  fake::wait_for(*stream, cudaSuccess);
  return done(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  FakeStream* stream = std::exchange(event->stream, nullptr);
  return done(stream ? fake::wait_for(*stream, status) : status);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  if (stream->capturing) {
    fake::complain("a capture begins in another");
    return done(cudaErrorInvalidValue);
  }
  stream->capturing = true;
  stream->invalid = false;
  stream->mode = mode;
  stream->captured.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(state().mutex);
  *graph = nullptr;
  const cudaError_t status = counted(__func__);
  stream->capturing = false;
  if (status != cudaSuccess) return done(status);
  if (stream->invalid) return done(cudaErrorStreamCaptureInvalidated);
  *graph = new FakeGraph{std::move(stream->captured)};
  stream->captured.clear();
  state().graphs.insert(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(state().mutex);
  return done(fake::destroy(state().graphs, graph, counted(__func__), "a graph"));
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__, cudaErrorMemoryAllocation);
  if (status != cudaSuccess) return done(status);
  *executable = new FakeGraphExec{std::make_shared<std::vector<FakeWork>>(graph->work)};
  state().executables.insert(*executable);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(state().mutex);
  return done(fake::destroy(state().executables, executable, counted(__func__), "an executable graph"));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(state().mutex);
  const cudaError_t status = counted(__func__);
  if (status != cudaSuccess) return done(status);
  if (!state().executables.contains(executable)) {
    fake::complain("a graph is launched that is not there");
    return done(cudaErrorInvalidResourceHandle);
  }
  const std::weak_ptr<std::vector<FakeWork>> all = executable->work;
  return done(fake::submit(stream, [all] {
    const auto work = all.lock();
    if (!work) return fake::complain("a graph is destroyed before it has run");
    for (const FakeWork& one : *work) one();
  }));
}
