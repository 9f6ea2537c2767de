// The frame of the addon's functions that are not ops.
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

}  // namespace bnb
