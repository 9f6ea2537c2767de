// Per-environment state: construction, accounting, errors, teardown.

#include "napi/env.h"

#include "napi/status.h"

namespace bnb {
namespace {

// Garbage that may gather before V8 is asked to collect it: an eighth of what is alive, at least this much.
constexpr int64_t kLeastAllowance = int64_t{16} << 20;
// V8 starts a collection when external memory has grown by this much since the last one (kExternalAllocationSoftLimit).
constexpr int64_t kV8SoftLimit = int64_t{64} << 20;
constexpr uint64_t kBacklog = 64 << 10;
// Calls between two looks: asking how far a worker is takes a cache line away from it.
constexpr uint64_t kBacklogPeriod = 256;

int64_t allowance(int64_t live) { return live / 8 > kLeastAllowance ? live / 8 : kLeastAllowance; }

}  // namespace

Env::Env(napi_env env) : napi(env), level_(kLeastAllowance) { devices.push_back(make_cpu()); }

Env::~Env() {
  // Run what is queued first: it may write into ArrayBuffers that reads hold.
  for (auto& device : devices) device->stream().wait();
  offloaded.clear();
  slots = Slots{};
  graphs.clear();
  devices.clear();
}

void Env::find_gpus() {
  if (has_looked_) return;
  std::vector<std::unique_ptr<Device>> gpus;
  append_gpus(gpus);
  for (auto& gpu : gpus) {
    if (clock) gpu->changes().share(clock);
    devices.push_back(std::move(gpu));
  }
  has_looked_ = true;
}

Device& Env::device_at(int64_t index) {
  check_device(index >= 0 && index < static_cast<int64_t>(devices.size()), "device", "no device with index ", index);
  return *devices[static_cast<size_t>(index)];
}

int64_t Env::index_of(const Device& device) const {
  int64_t index = 0;
  while (devices[static_cast<size_t>(index)].get() != &device) index++;
  return index;
}

int64_t Env::live_bytes() const {
  int64_t live = 0;
  for (const auto& device : devices) live += static_cast<int64_t>(device->pool().live_bytes());
  return live;
}

void Env::account() {
  const int64_t live = live_bytes();
  if (collected_ > 0) peak_ = collected_ = 0;
  if (live > peak_) peak_ = live;
  if (live <= level_) return;
  tell(live + allowance(live) + kV8SoftLimit);
  tell(level_ - kV8SoftLimit);
}

void Env::account_collected(int64_t nbytes) {
  collected_ += nbytes;
  const int64_t peak = peak_ - collected_;
  const int64_t level = peak + allowance(peak);
  if (level < level_ - allowance(peak) / 2) tell(level);
}

void Env::tell(int64_t level) {
  int64_t total;
  must(napi, napi_adjust_external_memory(napi, level - level_, &total));
  level_ = level;
}

void Env::check_backlog() {
  if (calls_++ % kBacklogPeriod != 0) return;
  for (const auto& device : devices) {
    const uint64_t pending = device->stream().pending();
    if (pending < kBacklog / 2) {
      warned_backlog_ = false;
    } else if (pending > kBacklog && !warned_backlog_ && warn) {
      warned_backlog_ = true;
      const std::string text = std::to_string(pending) + " operations are queued on " + device->str() +
                               ": await synchronize() now and then, or read a value";
      napi_value callback, receiver, message;
      must(napi, napi_get_reference_value(napi, warn, &callback));
      must(napi, napi_get_undefined(napi, &receiver));
      must(napi, napi_create_string_utf8(napi, text.c_str(), text.size(), &message));
      must(napi, napi_call_function(napi, receiver, callback, 1, &message, nullptr));
    }
  }
}

napi_value Env::make_error(const Error& error) const {
  napi_value code, message, result = nullptr;
  must(napi, napi_create_string_utf8(napi, code_name(error.code()), NAPI_AUTO_LENGTH, &code));
  must(napi, napi_create_string_utf8(napi, error.what(), NAPI_AUTO_LENGTH, &message));
  if (error_class) {
    napi_value constructor;
    must(napi, napi_get_reference_value(napi, error_class, &constructor));
    const napi_value args[] = {code, message};
    must(napi, napi_new_instance(napi, constructor, 2, args, &result));
  } else {
    must(napi, napi_create_error(napi, code, message, &result));
  }
  return result;
}

void Env::throw_error(const Error& error) const noexcept {
  bool pending = false;
  if (napi_is_exception_pending(napi, &pending) != napi_ok || pending) return;
  try {
    must(napi, napi_throw(napi, make_error(error)));
  } catch (const Error&) {
    // No JavaScript can run any more (a thread that is being terminated), or it has thrown an error of its own.
  }
}

}  // namespace bnb
