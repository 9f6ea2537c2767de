// The queue is a list of chunks with one producer and one consumer; counters say what is published and done.
// The worker looks for more during 50 us before it sleeps, so a burst of small ops costs one wake-up. After 5 of them
// it yields between looks: woken on the core of the thread that woke it, it would otherwise keep that thread off.

#include "core/stream.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <system_error>

#include "core/device.h"
#include "core/spin.h"

namespace bnb {
namespace {

constexpr auto kUnyielding = std::chrono::microseconds(5);

// BNB_SYNC=1 runs every op to completion in its call, so that errors carry the guilty stack.
bool synchronous() {
  static const bool on = [] {
    const char* value = std::getenv("BNB_SYNC");
    return value && value[0] == '1';
  }();
  return on;
}

}  // namespace

CudaStream* stream_of(Device& device) { return device.stream().cuda; }

Stream::Stream(Device& device) : device_(device), write_chunk_(new Chunk), read_chunk_(write_chunk_) {
  try {
    worker_ = std::thread([this] { work(); });
  } catch (const std::system_error& error) {
    delete write_chunk_;
    fail(Code::oom, device.str().c_str(), "its stream needs a thread, and the system gives none: ", error.what());
  }
}

Stream::~Stream() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  worker_.join();
  if (error_) std::fprintf(stderr, "bitsandbytes-node: an error that nothing read: %s\n", error_->what());
  for (Chunk* c = read_chunk_; c;) {
    Chunk* next = c->next;
    delete c;
    c = next;
  }
  delete spare_.load();
}

Command& Stream::slot() {
  const uint64_t at = published_.load(std::memory_order_relaxed);
  if (at > 0 && at % kChunk == 0) {
    Chunk* chunk = spare_.exchange(nullptr, std::memory_order_acquire);
    if (!chunk) chunk = new Chunk;
    chunk->next.store(nullptr, std::memory_order_relaxed);
    write_chunk_->next.store(chunk, std::memory_order_release);
    write_chunk_ = chunk;
  }
  return write_chunk_->commands[at % kChunk];
}

void Stream::publish() {
  published_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst)) {
    std::lock_guard lock(mutex_);
    sleeping_.store(false, std::memory_order_relaxed);  // so that only one push of a burst pays for the wake-up
    wake_.notify_one();
  }
  if (synchronous()) {
    wait();
    if (auto error = take_error()) throw *error;
  }
}

void Stream::work() {
  uint64_t at = 0, known = 0;  // known: published at the last look
  for (;;) {
    if (known == at && (known = published_.load(std::memory_order_acquire)) == at) {
      const auto start = SpinClock::now();
      SpinClock::duration idle{};
      do {
        idle < kUnyielding ? pause(8) : std::this_thread::yield();
        known = published_.load(std::memory_order_acquire);
        idle = SpinClock::now() - start;
      } while (known == at && idle < kSpin);
      if (known == at) {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] {
          // Each time: a push that saw an earlier sleep may have cleared it during this one.
          sleeping_.store(true, std::memory_order_seq_cst);
          return published_.load(std::memory_order_seq_cst) != at || stop_;
        });
        sleeping_.store(false, std::memory_order_relaxed);
        known = published_.load();
        if (known == at) {  // stopped and drained
          if (device_.runtime().stop) device_.runtime().stop(device_);
          return;
        }
      }
    }
    if (at > 0 && at % kChunk == 0) {
      Chunk* drained = read_chunk_;
      read_chunk_ = drained->next.load(std::memory_order_acquire);
      delete spare_.exchange(drained, std::memory_order_acq_rel);
    }
    run(read_chunk_->commands[at % kChunk]);
    at++;
    completed_.store(at, std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_seq_cst)) {
      std::lock_guard lock(mutex_);
      idle_.notify_all();
    }
  }
}

void Stream::run(const Command& command) {
  if (failed_.load(std::memory_order_relaxed) && !command.always) return;
  try {
    command.invoke(device_, command);
  } catch (const Error& error) {
    keep_error(command.name, error);
  } catch (const std::bad_alloc&) {
    keep_error(command.name, Error(Code::oom, "no memory for scratch space"));
  } catch (const std::exception& error) {
    keep_error(command.name, Error(Code::unsupported, error.what()));
  }
  // A GPU has not run it yet: take_error() looks when it has.
  if (!cuda) check_fault(command.name);
}

void Stream::run_recorded(const Command& command) {
  command.invoke(device_, command);
  if (!cuda) check_fault(command.name);
}

std::vector<Command> Stream::end_recording() {
  std::vector<Command> commands = std::move(*recording_);
  recording_.reset();
  return commands;
}

void Stream::check_fault(const char* op) {
  if (fault_->code == 0) return;
  const Fault fault = *fault_;
  *fault_ = {};
  std::ostringstream what;
  what << "index " << fault.value << " is out of range, it must be in [0, " << fault.limit << ")";
  keep_error(fault.op ? fault.op : op, Error(Code::argument, what.str()));
}

void Stream::keep_error(const char* op, const Error& error) {
  if (failed_) return;
  error_ = Error(error.code(), std::string(op) + ": " + error.what());
  failed_ = true;
}

std::optional<Error> Stream::take_error() {
  if (const auto finish = device_.runtime().finish) {
    try {
      finish(device_);
    } catch (const Error& error) {
      keep_error(device_.str().c_str(), error);
    }
    check_fault(device_.str().c_str());
  }
  if (!failed_) return {};
  std::optional<Error> error = std::move(error_);
  error_.reset();
  failed_ = false;
  return error;
}

void Stream::wait() {
  const uint64_t target = published_.load(std::memory_order_relaxed);
  const auto until = SpinClock::now() + kSpin;
  while (completed_.load(std::memory_order_acquire) < target) {
    if (SpinClock::now() < until) {
      std::this_thread::yield();
      continue;
    }
    std::unique_lock lock(mutex_);
    waiting_.store(true, std::memory_order_seq_cst);
    idle_.wait(lock, [&] { return completed_.load(std::memory_order_seq_cst) >= target; });
    waiting_ = false;
  }
}

}  // namespace bnb
