// Every status of Node-API is looked at: must() turns a failure into an Error, which the callback that made the call
// throws to JavaScript, unless JavaScript has thrown something itself.
#pragma once
#include <node_api.h>

#include "core/error.h"

namespace bnb {

[[noreturn]] inline void fail_call(napi_env env, napi_status status) {
  const napi_extended_error_info* info = nullptr;
  const bool told = napi_get_last_error_info(env, &info) == napi_ok && info && info->error_message;
  fail(Code::unsupported, "Node-API", told ? info->error_message : "a call failed", " (status ",
       static_cast<int>(status), ")");
}

inline void must(napi_env env, napi_status status) {
  if (status != napi_ok) [[unlikely]]
    fail_call(env, status);
}

}  // namespace bnb
