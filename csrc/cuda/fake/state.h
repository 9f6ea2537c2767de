// What the fake CUDA runtime keeps: GPUs that are not there, whose kernels the emulator runs. It is as unhelpful as a
// GPU may be. Work waits in its stream until somebody waits for it, freed memory cannot be touched, and what a GPU
// would refuse is refused. One lock holds everything.
//   BNB_FAKE_DEVICES  number of GPUs (default 2)
//   BNB_FAKE_MEMORY   bytes that each has (default 1 GB)
//   BNB_FAKE_FAIL     "17": the 17th call fails, "17+": from it on all do, "cudaMalloc:2": the second one of that name;
//                     read, and counted anew, whenever the GPUs are counted, which is when an environment first
//                     asks for them
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/fake/cuda_runtime.h"

using FakeWork = std::function<void()>;

struct FakeStream {
  int device;
  std::deque<FakeWork> queue;
  bool capturing = false, invalid = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::vector<FakeWork> captured;
};
struct FakeEvent {
  int device;
  FakeStream* stream = nullptr;  // null when nothing that was recorded is still to come
};
struct FakeGraph {
  std::vector<FakeWork> work;
};
struct FakeGraphExec {
  std::shared_ptr<std::vector<FakeWork>> work;
};

namespace fake {

struct Block {
  size_t nbytes;
  int device;  // -1: host memory
};

struct State {
  std::recursive_mutex mutex;
  std::map<const void*, Block> blocks;
  std::set<FakeStream*> streams;
  std::set<FakeEvent*> events;
  std::set<FakeGraph*> graphs;
  std::set<FakeGraphExec*> executables;
  std::map<std::pair<const void*, int>, size_t> dynamic_shared;  // what a kernel was allowed on a device
  std::set<int> contexts;
  std::string broken;  // what a kernel did, after which every call fails
  std::vector<std::string> complaints;
  // Failing on demand.
  uint64_t calls = 0, fail_at = 0, of_name = 0;
  bool fail_on = false;
  std::string fail_name, failed;
};

// Of shared memory that every kernel has beside what launches ask for: the emulator knows the true sizes only after a
// kernel has run.
constexpr size_t kStaticShared = 1024;
constexpr size_t kSharedPerBlock = 227 << 10;

State& state();
int current_device();
// Counts a call. Gives `error` when it is to fail, cudaErrorIllegalAddress when all calls do, else success.
cudaError_t counted(const char* name, cudaError_t error = cudaErrorUnknown);
// Remembers the status for cudaGetLastError, as every call does with its own.
cudaError_t done(cudaError_t status);
// A mistake of the caller that a GPU would not report.
void complain(const std::string& what);
// Runs what waits in a stream, or in every stream of a device.
void drain(FakeStream& stream);
void drain_device(int device);
// Appends work to the stream or to the graph that it captures; refuses what is no stream.
cudaError_t submit(FakeStream* stream, FakeWork work);

}  // namespace fake
