// Per-environment state: construction, accounting, errors, teardown.

#include "napi/env.h"

namespace bnb {
namespace {

constexpr int64_t kAccountStep = int64_t{32} << 20;
constexpr int64_t kAccountSlack = int64_t{64} << 20;
constexpr uint64_t kBacklog = 64 << 10;

}  // namespace

Env::Env(napi_env env) : napi(env), devices(make_devices()) {}

Env::~Env() {
  // Run what is queued first: it may write into ArrayBuffers that reads hold.
  for (auto& device : devices) device->stream().wait();
  slots = Slots{};
  graphs.clear();
  devices.clear();
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

void Env::account(bool from_finalizer) {
  int64_t live = 0;
  for (const auto& device : devices) live += static_cast<int64_t>(device->pool().live_bytes());
  const bool grew = live > reported_bytes_;
  const bool shrank = from_finalizer && live < reported_bytes_ - kAccountSlack;
  if (!grew && !shrank) return;
  const int64_t level = (live + kAccountStep - 1) / kAccountStep * kAccountStep;
  int64_t total;
  napi_adjust_external_memory(napi, level - reported_bytes_, &total);
  reported_bytes_ = level;
}

void Env::check_backlog() {
  for (const auto& device : devices) {
    const uint64_t pending = device->stream().pending();
    if (pending < kBacklog / 2) {
      warned_backlog_ = false;
    } else if (pending > kBacklog && !warned_backlog_ && warn) {
      warned_backlog_ = true;
      const std::string text = std::to_string(pending) + " operations are queued on " + device->str() +
                               ": await synchronize() now and then, or read a value";
      napi_value callback, receiver, message;
      napi_get_reference_value(napi, warn, &callback);
      napi_get_undefined(napi, &receiver);
      napi_create_string_utf8(napi, text.c_str(), text.size(), &message);
      napi_call_function(napi, receiver, callback, 1, &message, nullptr);
    }
  }
}

napi_value Env::make_error(const Error& error) const {
  napi_value code, message, result = nullptr;
  napi_create_string_utf8(napi, code_name(error.code()), NAPI_AUTO_LENGTH, &code);
  napi_create_string_utf8(napi, error.what(), NAPI_AUTO_LENGTH, &message);
  if (error_class) {
    napi_value constructor;
    napi_get_reference_value(napi, error_class, &constructor);
    const napi_value args[] = {code, message};
    napi_new_instance(napi, constructor, 2, args, &result);
  } else {
    napi_create_error(napi, code, message, &result);
  }
  return result;
}

void Env::throw_error(const Error& error) const {
  bool pending = false;
  napi_is_exception_pending(napi, &pending);
  if (!pending) napi_throw(napi, make_error(error));
}

}  // namespace bnb
