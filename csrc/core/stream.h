// A queue of fixed-size commands and the one worker that runs them in order. The JavaScript thread pushes
// and never waits, except in wait(). The first failure is kept, later commands are skipped until take_error().
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/error.h"
#include "core/kernel.h"

namespace bnb {

class Device;
Isa active_isa();
CudaStream* stream_of(Device& device);

constexpr size_t kMaxArgs = 288;

struct Command {
  using Function = void (*)();
  void (*invoke)(Device&, const Command&);
  Function function;  // the kernel or callback, cast back by invoke
  const char* name;   // for error messages
  bool always;        // runs even after a failure: reads, releases
  alignas(16) unsigned char args[kMaxArgs];

  template <class Args>
  const Args& as() const {
    return *reinterpret_cast<const Args*>(args);
  }
};

class Stream {
 public:
  explicit Stream(Device& device);
  ~Stream();  // runs what is queued, then joins
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  template <class Args>
  void push(const Kernel<Args>& kernel, const Args& args);

  // Queues callback(device, args), which is skipped after a failure, like a kernel; or which runs whatever happened.
  template <class Args>
  void push(const char* name, const Args& args, void (*callback)(Device&, const Args&)) {
    push_callback(name, args, callback, false);
  }
  template <class Args>
  void push_always(const char* name, const Args& args, void (*callback)(Device&, const Args&)) {
    push_callback(name, args, callback, true);
  }

  // Blocks until the worker has come to the end of everything pushed so far.
  void wait();
  // On the worker: the first failure since the last call, also of what a GPU is still running: it is waited for.
  std::optional<Error> take_error();
  Fault* fault() { return fault_; }
  // A cell that the device's kernels can write; before the first command.
  void set_fault(Fault* fault) { fault_ = fault; }
  // Commands pushed and not yet run.
  uint64_t pending() const {
    return published_.load(std::memory_order_relaxed) - completed_.load(std::memory_order_relaxed);
  }
  // Between these, kernels are kept and not run; callbacks are run as ever. See core/graph.h.
  void begin_recording() { recording_.emplace(); }
  std::vector<Command> end_recording();
  bool is_recording() const { return recording_.has_value(); }
  // On the worker: a command of a recording.
  void run_recorded(const Command& command);
  // The CUDA runtime's stream, null on a CPU; set by the device before its first launch.
  CudaStream* cuda = nullptr;

 private:
  static constexpr size_t kChunk = 512;
  struct Chunk {
    Command commands[kChunk];
    std::atomic<Chunk*> next{nullptr};
  };

  template <class Args>
  Command& prepare(Command& c, const char* name, const Args& args) {
    static_assert(sizeof(Args) <= kMaxArgs && std::is_trivially_copyable_v<Args>);
    c.name = name;
    std::memcpy(c.args, &args, sizeof(Args));
    return c;
  }
  template <class Args>
  void push_callback(const char* name, const Args& args, void (*callback)(Device&, const Args&), bool always) {
    Command& c = prepare(slot(), name, args);
    c.always = always;
    c.function = reinterpret_cast<Command::Function>(callback);
    c.invoke = [](Device& d, const Command& command) {
      reinterpret_cast<void (*)(Device&, const Args&)>(command.function)(d, command.as<Args>());
    };
    publish();
  }
  Command& slot();
  void publish();
  void work();
  void run(const Command& command);
  void keep_error(const char* op, const Error& error);
  void check_fault(const char* op);

  Device& device_;
  Chunk* write_chunk_;
  Chunk* read_chunk_;
  std::atomic<Chunk*> spare_{nullptr};  // one drained chunk, to be written again
  Fault own_fault_{};
  Fault* fault_ = &own_fault_;
  std::atomic<bool> failed_{false};
  std::optional<Error> error_;                     // written by the worker
  std::optional<std::vector<Command>> recording_;  // of the JavaScript thread

  // Three cache lines: what the producer writes per command, what the worker writes per command, and what both
  // read per command and seldom write. Sharing one would cost each push two trips to the other core.
  alignas(64) std::atomic<uint64_t> published_{0};
  alignas(64) std::atomic<uint64_t> completed_{0};
  alignas(64) std::atomic<bool> sleeping_{false};
  std::atomic<bool> waiting_{false}, stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::thread worker_;
};

template <class Args>
void Stream::push(const Kernel<Args>& kernel, const Args& args) {
  Command& c = prepare(recording_ ? recording_->emplace_back() : slot(), kernel.name, args);
  c.always = false;
  if (cuda) {
    c.function = reinterpret_cast<Command::Function>(kernel.cuda);
    c.invoke = [](Device& d, const Command& command) {
      reinterpret_cast<void (*)(const Args&, CudaStream&)>(command.function)(command.as<Args>(), *stream_of(d));
    };
  } else {
    c.function = reinterpret_cast<Command::Function>(kernel.cpu[static_cast<int>(active_isa())]);
    c.invoke = [](Device&, const Command& command) {
      reinterpret_cast<void (*)(const Args&)>(command.function)(command.as<Args>());
    };
  }
  if (!recording_) publish();
}

}  // namespace bnb
