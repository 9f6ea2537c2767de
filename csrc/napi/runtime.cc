// The addon's functions that are not ops: setup, dispose, uploads, reads, graphs. devices.cc and offload.cc have
// others.

#include <algorithm>

#include "core/file.h"
#include "core/graph.h"
#include "core/transfer.h"
#include "napi/bind.h"
#include "napi/guarded.h"

namespace bnb {
namespace {

// Function-local, so that nothing runs when the addon is loaded.
const Signature& read_signature() {
  static const Signature signature("data(x, buffer)");
  return signature;
}
const Signature& upload_signature() {
  static const Signature signature("tensor(bytes, dtype, shape, device)");
  return signature;
}
const Signature& file_signature() {
  static const Signature signature("readFile(x, descriptor, offset, buffer)");
  return signature;
}
// setup(results: Float64Array, BnbError, warn, clock: Float64Array): the buffers and the classes that the addon uses.
napi_value setup(napi_env napi, napi_callback_info info) {
  return guarded<4>(napi, info, "setup", [&](Env& env, napi_value* v) -> napi_value {
    void* data = nullptr;
    napi_typedarray_type type;
    must(napi, napi_get_typedarray_info(napi, v[0], &type, &env.results_capacity, &data, nullptr, nullptr));
    check_argument(type == napi_float64_array, "setup", "results must be a Float64Array");
    napi_ref keep;
    must(napi, napi_create_reference(napi, v[0], 1, &keep));
    must(napi, napi_create_reference(napi, v[1], 1, &env.error_class));
    must(napi, napi_create_reference(napi, v[2], 1, &env.warn));
    env.results = static_cast<double*>(data);
    must(napi, napi_get_typedarray_info(napi, v[3], &type, nullptr, &data, nullptr, nullptr));
    check_argument(type == napi_float64_array, "setup", "clock must be a Float64Array");
    must(napi, napi_create_reference(napi, v[3], 1, &keep));
    env.clock = static_cast<double*>(data);
    for (auto& device : env.devices) device->changes().share(env.clock);
    return nullptr;
  });
}

// dispose(handle) and, from the garbage collector's net, finalize(handle): stale handles are ignored.
napi_value dispose_handle(napi_env napi, napi_callback_info info, bool from_finalizer) {
  return guarded<1>(napi, info, "dispose", [&](Env& env, napi_value* v) -> napi_value {
    const int32_t handle = int32_of(napi, v[0]);
    if (!from_finalizer) {
      env.slots.remove(handle);
      return nullptr;
    }
    const int64_t before = env.live_bytes();
    env.slots.remove(handle);
    env.account_collected(before - env.live_bytes());
    return nullptr;
  });
}
napi_value dispose(napi_env napi, napi_callback_info info) { return dispose_handle(napi, info, false); }
napi_value finalize(napi_env napi, napi_callback_info info) { return dispose_handle(napi, info, true); }

// version(handle): how often the memory behind it was changed in place. changedAt(handle): the last time, on the clock.
// Both 0 for a stale handle.
template <class F>
napi_value changes_of(napi_env napi, napi_callback_info info, const F& of) {
  return guarded<1>(napi, info, "version", [&](Env& env, napi_value* v) {
    int32_t handle = 0;
    must(napi, napi_get_value_int32(napi, v[0], &handle));
    double most = 0;
    if (const SlotValue* value = env.slots.find(handle)) {
      const auto look = [&](const Tensor& t) { most = t.defined() ? std::max(most, of(t.changes())) : most; };
      each_tensor(*value, look);
    }
    napi_value result;
    must(napi, napi_create_double(napi, most, &result));
    return result;
  });
}
napi_value version(napi_env napi, napi_callback_info info) {
  return changes_of(napi, info, [](const Changes& c) { return static_cast<double>(c.count()); });
}
napi_value changed_at(napi_env napi, napi_callback_info info) {
  return changes_of(napi, info, [](const Changes& c) { return c.last(); });
}

// fromBytes(bytes: Uint8Array, dtype, shape, device): one tensor in the results.
napi_value from_bytes(napi_env napi, napi_callback_info info) {
  return guarded<4>(napi, info, "tensor", [&](Env& env, napi_value* v) -> napi_value {
    const DType dtype = dtype_arg({env, upload_signature(), v[1], 1});
    const Shape shape = shape_arg({env, upload_signature(), v[2], 2});
    Device& device = device_of(env, v[3]);
    // The pointer comes last: nothing of JavaScript runs between this and the copy.
    size_t nbytes = 0;
    void* data = nullptr;
    napi_typedarray_type type;
    const napi_status status = napi_get_typedarray_info(napi, v[0], &type, &nbytes, &data, nullptr, nullptr);
    check_argument(status == napi_ok && type == napi_uint8_array, "tensor", "bytes must be a Uint8Array");
    Results(env).put(upload(data, nbytes, shape, dtype, device));
    env.account();
    return nullptr;
  });
}

// One pending read: the worker copies into an ArrayBuffer that no JavaScript can see before it is settled.
// The source needs no owner: whatever would reuse or release its block is queued behind this read.
struct Read {
  Env* env;
  const void* from = nullptr;
  void* to = nullptr;
  size_t nbytes = 0;
  int descriptor = -1;  // of a file to read instead of `from`; closed by the worker
  int64_t offset = 0;
  napi_ref buffer = nullptr;
  napi_deferred deferred = nullptr;
  std::optional<Error> error{};
};

void run_file_read(Device& device, Read* read) {
  try {
    read_file(device, read->descriptor, read->offset, read->to, read->nbytes);
  } catch (const Error& error) {
    read->error = error;
  }
  close_descriptor(read->descriptor);
}

void run_read(Device& device, Read* read) {
  if (read->descriptor >= 0) return run_file_read(device, read);
  read->error = device.stream().take_error();
  if (read->error || read->nbytes == 0) return;
  try {
    device.runtime().copy(device, read->to, read->from, read->nbytes);
  } catch (const Error& error) {
    read->error = error;
  }
}

void settle_read(napi_env napi, napi_value, void*, void* data) {
  const std::unique_ptr<Read> read(static_cast<Read*>(data));
  if (!napi) return;  // the environment is going away
  Env& env = *read->env;
  try {
    if (--env.pending_reads == 0) must(napi, napi_unref_threadsafe_function(napi, env.reads));
    napi_value buffer;
    must(napi, napi_get_reference_value(napi, read->buffer, &buffer));
    must(napi, napi_delete_reference(napi, read->buffer));
    must(napi, read->error ? napi_reject_deferred(napi, read->deferred, env.make_error(*read->error))
                           : napi_resolve_deferred(napi, read->deferred, buffer));
  } catch (const Error& error) {
    env.throw_error(error);
  }
}

Device& prepare_read(Env& env, napi_value tensor, napi_value buffer, Read& read) {
  const Tensor& source = tensor_arg({env, read_signature(), tensor, 0, 1});
  must(env.napi, napi_get_arraybuffer_info(env.napi, buffer, &read.to, &read.nbytes));
  check_argument(read.nbytes == source.nbytes(), "data", "the buffer must have ", source.nbytes(), " bytes, got ",
                 read.nbytes);
  read.from = source.data();
  Graph::check_not_recording(source.device(), "data");
  return source.device();
}

napi_value start_read(Env& env, Device& device, std::unique_ptr<Read> read, napi_value buffer) {
  napi_value promise;
  must(env.napi, napi_create_reference(env.napi, buffer, 1, &read->buffer));
  must(env.napi, napi_create_promise(env.napi, &read->deferred, &promise));
  if (env.pending_reads++ == 0) must(env.napi, napi_ref_threadsafe_function(env.napi, env.reads));
  device.stream().push_always(
      "data", read.release(), +[](Device& d, Read* const& r) {
        run_read(d, r);
        // Refused only when the environment is being torn down: nobody awaits the read any more.
        if (napi_call_threadsafe_function(r->env->reads, r, napi_tsfn_nonblocking) != napi_ok) delete r;
      });
  return promise;
}

// read(tensor, buffer: ArrayBuffer): a promise of the filled buffer.
napi_value read_async(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "data", [&](Env& env, napi_value* v) {
    auto read = std::make_unique<Read>(Read{.env = &env});
    Device& device = prepare_read(env, v[0], v[1], *read);
    return start_read(env, device, std::move(read), v[1]);
  });
}

// readSync(tensor, buffer): fills the buffer before it returns.
napi_value read_sync(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "dataSync", [&](Env& env, napi_value* v) -> napi_value {
    Read read{.env = &env};
    Device& device = prepare_read(env, v[0], v[1], read);
    device.stream().push_always(
        "data", &read, +[](Device& d, Read* const& r) { run_read(d, r); });
    device.stream().wait();
    if (read.error) throw *read.error;
    return nullptr;
  });
}

// includesByte(tensor, byte): whether the memory holds it, in the order of the device's other work; waits. What is not
// the host's is copied piece by piece.
napi_value includes_byte(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "includesByte", [&](Env& env, napi_value* v) {
    const Tensor& source = tensor_arg({env, read_signature(), v[0], 0, 1});
    Graph::check_not_recording(source.device(), "includesByte");
    struct Search {
      const unsigned char* at;
      size_t nbytes;
      int byte;
      bool found = false;
      std::optional<Error> error{};
    } search{static_cast<const unsigned char*>(source.data()), source.nbytes(), int32_of(napi, v[1])};
    source.device().stream().push_always(
        "includesByte", &search, +[](Device& d, Search* const& s) {
          s->error = d.stream().take_error();
          if (s->error || s->nbytes == 0) return;
          if (d.type() == DeviceType::cpu) {
            s->found = std::memchr(s->at, s->byte, s->nbytes) != nullptr;
            return;
          }
          try {
            std::vector<unsigned char> piece(std::min(s->nbytes, size_t{4} << 20));
            for (size_t at = 0; at < s->nbytes && !s->found; at += piece.size()) {
              const size_t n = std::min(piece.size(), s->nbytes - at);
              d.runtime().copy(d, piece.data(), s->at + at, n);
              s->found = std::memchr(piece.data(), s->byte, n) != nullptr;
            }
          } catch (const Error& error) {
            s->error = error;
          }
        });
    source.device().stream().wait();
    if (search.error) throw *search.error;
    napi_value result;
    must(napi, napi_get_boolean(napi, search.found, &result));
    return result;
  });
}

// synchronize(device, buffer): resolves with the buffer when everything queued on the device has run.
napi_value synchronize(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "synchronize", [&](Env& env, napi_value* v) {
    return start_read(env, device_of(env, v[0]), std::make_unique<Read>(Read{.env = &env}), v[1]);
  });
}

// readFile(tensor, descriptor, offset, buffer of 0 bytes): a promise that settles when the tensor holds the bytes of
// the open file from `offset` on. They go straight into the tensor's memory, in the order of the device's other work.
napi_value read_file_async(napi_env napi, napi_callback_info info) {
  return guarded<4>(napi, info, "readFile", [&](Env& env, napi_value* v) {
    const Tensor& target = tensor_arg({env, file_signature(), v[0], 0, 1});
    Graph::check_not_recording(target.device(), "readFile");
    const auto offset = integer_arg({env, file_signature(), v[2], 2});
    const int descriptor = duplicate_descriptor(static_cast<int>(integer_arg({env, file_signature(), v[1], 1})));
    if (descriptor < 0) fail(Code::file, "readFile", "the file is not open");
    auto read = std::make_unique<Read>(Read{.env = &env, .to = target.data(), .nbytes = target.nbytes()});
    read->descriptor = descriptor;
    read->offset = offset;
    return start_read(env, target.device(), std::move(read), v[3]);
  });
}

// beginGraph(device): its ops are recorded from here on. endGraph(device, keep): the id of the graph, or 0.
napi_value begin_graph(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "graph", [&](Env& env, napi_value* v) -> napi_value {
    Graph::begin(device_of(env, v[0]));
    return nullptr;
  });
}
napi_value end_graph(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "graph", [&](Env& env, napi_value* v) {
    bool keep = false;
    must(napi, napi_get_value_bool(napi, v[1], &keep));
    int32_t id = 0;
    if (auto graph = Graph::end(device_of(env, v[0]), keep)) {
      id = ++env.last_graph;
      env.graphs[id] = std::move(graph);
    }
    napi_value result;
    must(napi, napi_create_int32(napi, id, &result));
    return result;
  });
}

Graph& graph_of(Env& env, napi_value value) {
  const auto found = env.graphs.find(int32_of(env.napi, value));
  if (found == env.graphs.end()) fail(Code::disposed, "graph", "the graph was disposed");
  return *found->second;
}

// replayGraph(id); graphHasTensors(id): whether all tensors from outside that it uses still exist.
napi_value replay_graph(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "graph", [&](Env& env, napi_value* v) -> napi_value {
    graph_of(env, v[0]).replay();
    return nullptr;
  });
}
napi_value graph_has_tensors(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "graph", [&](Env& env, napi_value* v) {
    napi_value result;
    must(napi, napi_get_boolean(napi, graph_of(env, v[0]).has_tensors(), &result));
    return result;
  });
}
// disposeGraph(id) and, from the garbage collector's net, finalizeGraph(id).
napi_value dispose_graph(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "graph", [&](Env& env, napi_value* v) -> napi_value {
    env.graphs.erase(int32_of(env.napi, v[0]));
    return nullptr;
  });
}
napi_value finalize_graph(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "graph", [&](Env& env, napi_value* v) -> napi_value {
    const int64_t before = env.live_bytes();
    env.graphs.erase(int32_of(env.napi, v[0]));
    env.account_collected(before - env.live_bytes());
    return nullptr;
  });
}

}  // namespace

void define_runtime(Env& env, napi_value exports) {
  constexpr Entry kEntries[] = {
      {"setup", setup},
      {"dispose", dispose},
      {"finalize", finalize},
      {"version", version},
      {"changedAt", changed_at},
      {"fromBytes", from_bytes},
      {"read", read_async},
      {"readSync", read_sync},
      {"includesByte", includes_byte},
      {"readFile", read_file_async},
      {"synchronize", synchronize},
      {"beginGraph", begin_graph},
      {"endGraph", end_graph},
      {"replayGraph", replay_graph},
      {"graphHasTensors", graph_has_tensors},
      {"disposeGraph", dispose_graph},
      {"finalizeGraph", finalize_graph},
  };
  define_all(env, exports, kEntries);
  napi_value name;
  must(env.napi, napi_create_string_utf8(env.napi, "bitsandbytes.read", NAPI_AUTO_LENGTH, &name));
  must(env.napi, napi_create_threadsafe_function(env.napi, nullptr, nullptr, name, 0, 1, nullptr, nullptr, &env,
                                                 settle_read, &env.reads));
  must(env.napi, napi_unref_threadsafe_function(env.napi, env.reads));
}

}  // namespace bnb

NAPI_MODULE_INIT() {
  using namespace bnb;
  // Thrown before there is a BnbError to throw; src/native/load.ts makes one of it.
  try {
    auto state = std::make_unique<Env>(env);
    define_runtime(*state, exports);
    define_devices(*state, exports);
    define_offload(*state, exports);
    define_ops(*state, exports);
    // Hooks run last in, first out: queued work is finished while the functions and the read queue still exist.
    must(env, napi_add_env_cleanup_hook(
                  env, [](void* p) { delete static_cast<Env*>(p); }, state.get()));
    state.release();
    return exports;
  } catch (const Error& error) {
    napi_throw_error(env, code_name(error.code()), error.what());
  } catch (const std::exception& error) {
    napi_throw_error(env, code_name(Code::oom), error.what());
  }
  return nullptr;
}
