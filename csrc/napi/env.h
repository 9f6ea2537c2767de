// What one JavaScript environment (the main thread, or a worker thread) owns: its devices, its slots, and the
// bookkeeping with V8. Reaches every callback as its data pointer; nothing of it is global.
#pragma once
#include <node_api.h>

#include <map>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/graph.h"
#include "napi/slots.h"

namespace bnb {

struct Env {
  explicit Env(napi_env env);
  ~Env();

  napi_env napi;
  std::vector<std::unique_ptr<Device>> devices;
  Slots slots;
  std::map<int32_t, std::shared_ptr<Graph>> graphs;
  int32_t last_graph = 0;

  // Results of an op, read by src/tensor/run.ts: [count, then per output: handle, dtype, device, ndim, dims...].
  double* results = nullptr;
  size_t results_capacity = 0;

  napi_ref error_class = nullptr;  // BnbError
  napi_ref warn = nullptr;         // (message: string) => void
  napi_threadsafe_function reads = nullptr;
  int pending_reads = 0;

  Device& device_at(int64_t index);
  int64_t index_of(const Device& device) const;
  // Tells V8 about memory it cannot see, in steps of 32 MB upwards; downwards only after a finalizer, and only
  // when 64 MB went, so that a loop which frees what it makes costs V8 nothing.
  void account(bool from_finalizer);
  // Warns once per burst when a stream's queue grows beyond 64 Ki commands.
  void check_backlog();
  napi_value make_error(const Error& error) const;
  void throw_error(const Error& error) const;

 private:
  int64_t reported_bytes_ = 0;
  bool warned_backlog_ = false;
};

// Everything that is not an op: setup, dispose, uploads, reads, devices, memory.
void define_runtime(Env& env, napi_value exports);
// Every op of ops.h.
void define_ops(Env& env, napi_value exports);

}  // namespace bnb
