// What one JavaScript environment (the main thread, or a worker thread) owns: its devices, its slots, and the
// bookkeeping with V8. Reaches every callback as its data pointer; nothing of it is global.
#pragma once
#include <node_api.h>

#include <map>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/graph.h"
#include "core/offload.h"
#include "core/thread_pool.h"
#include "napi/slots.h"

namespace bnb {

struct Env {
  explicit Env(napi_env env);
  ~Env();

  napi_env napi;
  ThreadPoolKeeper thread_pool;    // outlives the streams, whose work uses it
  std::unique_ptr<Loader> loader;  // made when it is first needed; outlives the devices
  // The CPU, and the GPUs once they were looked for.
  std::vector<std::unique_ptr<Device>> devices;
  Slots slots;
  std::map<int32_t, std::shared_ptr<Graph>> graphs;
  int32_t last_graph = 0;
  std::map<int32_t, std::unique_ptr<Offloaded>> offloaded;
  int32_t last_offloaded = 0;

  // Results of an op, read by src/tensor/run.ts: [count, then per output: handle, dtype, device, ndim, dims...]. Before
  // the call run() leaves in the first place which arguments are handles, one bit each.
  double* results = nullptr;
  size_t results_capacity = 0;
  uint32_t handles_of_call() const { return results ? static_cast<uint32_t>(*results) : 0; }

  double* clock = nullptr;         // of the changes of all devices' tensors in place
  napi_ref error_class = nullptr;  // BnbError
  napi_ref warn = nullptr;         // (message: string) => void, which only takes note
  napi_threadsafe_function reads = nullptr;
  int pending_reads = 0;

  // Asks the driver for the GPUs, the first time: a program that uses none does not wait for it.
  void find_gpus();
  Device& device_at(int64_t index);
  int64_t index_of(const Device& device) const;
  int64_t live_bytes() const;
  // Memory that V8 cannot see. It is told a level somewhat above the most that was live at once, and asked to collect
  // whenever that is exceeded. Deliberate disposes leave the level, so a loop which frees what it makes never costs V8
  // anything; what the garbage collector freed, of which account_collected is told, lowers it.
  void account();
  void account_collected(int64_t nbytes);
  // Warns once per burst when a stream's queue grows beyond 64 Ki commands.
  void check_backlog();
  napi_value make_error(const Error& error) const;
  void throw_error(const Error& error) const noexcept;

 private:
  void tell(int64_t level);

  int64_t level_;
  int64_t peak_ = 0;       // most that was live since the garbage collector last freed something
  int64_t collected_ = 0;  // what it freed since the last op
  uint64_t calls_ = 0;
  bool warned_backlog_ = false;
  bool has_looked_ = false;  // for GPUs
};

// Setup, dispose, uploads, reads, graphs.
void define_runtime(Env& env, napi_value exports);
// What devices there are, their memory, threads.
void define_devices(Env& env, napi_value exports);
// Tensors that wait elsewhere: core/offload.h.
void define_offload(Env& env, napi_value exports);
// Every op of ops.h.
void define_ops(Env& env, napi_value exports);

}  // namespace bnb
