// The frame of the addon's functions that are not ops, and what they share.
#pragma once
#include "napi/bind.h"

namespace bnb {

// Runs body(env, values) with at least N arguments, turning exceptions into JavaScript's.
template <size_t N, class F>
napi_value guarded(napi_env napi, napi_callback_info info, const char* name, const F& body) {
  size_t n = N;
  napi_value values[N + 1];
  void* data;
  if (napi_get_cb_info(napi, info, &n, values, nullptr, &data) != napi_ok) return nullptr;
  Env& env = *static_cast<Env*>(data);
  try {
    check_argument(n >= N, name, "takes ", N, " arguments, got ", n);
    return body(env, values);
  } catch (const Error& error) {
    env.throw_error(error);
  } catch (const std::exception& error) {
    env.throw_error(Error(Code::oom, std::string(name) + ": " + error.what()));
  }
  return nullptr;
}

inline int32_t int32_of(napi_env napi, napi_value value) {
  int32_t number = 0;
  must(napi, napi_get_value_int32(napi, value, &number));
  return number;
}

inline Device& device_of(Env& env, napi_value value) {
  static const Signature signature("device(index)");
  return env.device_at(integer_arg({env, signature, value, 0}));
}

// A function of the addon.
struct Entry {
  const char* name;
  napi_callback callback;
};

template <size_t N>
void define_all(Env& env, napi_value exports, const Entry (&entries)[N]) {
  for (const auto& [name, callback] : entries) {
    napi_value function;
    must(env.napi, napi_create_function(env.napi, name, NAPI_AUTO_LENGTH, callback, &env, &function));
    must(env.napi, napi_set_named_property(env.napi, exports, name, function));
  }
}

}  // namespace bnb
