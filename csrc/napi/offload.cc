// Tensors that wait elsewhere, as the addon offers them: by the number of their group.

#include "core/offload.h"

#include <utility>

#include "core/file.h"
#include "napi/guarded.h"

namespace bnb {
namespace {

const Signature& offload_signature() {
  static const Signature signature("offload(tensors, descriptor)");
  return signature;
}

int32_t group_of(Env& env, napi_value value) {
  int32_t id = 0;
  must(env.napi, napi_get_value_int32(env.napi, value, &id));
  return id;
}

// offload(tensors, descriptor): the id of the group. The descriptor of a file stays the caller's; -1 is host memory.
napi_value offload_tensors(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "offload", [&](Env& env, napi_value* v) {
    const std::vector<Tensor> tensors = tensors_arg({env, offload_signature(), v[0], 0, 1});
    const auto given = static_cast<int>(integer_arg({env, offload_signature(), v[1], 1}));
    if (!env.loader) env.loader = std::make_unique<Loader>();
    const int descriptor = given < 0 ? -1 : duplicate_descriptor(given);
    if (given >= 0 && descriptor < 0) fail(Code::file, "offloadFolder", "its file is not open, or too many files are");
    const int32_t id = ++env.last_offloaded;
    env.offloaded[id] = std::make_unique<Offloaded>(*env.loader, tensors, descriptor);
    napi_value result;
    must(napi, napi_create_int32(napi, id, &result));
    return result;
  });
}

// offloadFetch(id), offloadUse(id), offloadDrop(id).
template <void (Offloaded::*Method)()>
napi_value call_group(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "offload", [&](Env& env, napi_value* v) -> napi_value {
    const auto found = env.offloaded.find(group_of(env, v[0]));
    if (found == env.offloaded.end()) fail(Code::disposed, "offload", "the model was disposed");
    (found->second.get()->*Method)();
    env.account();
    return nullptr;
  });
}

// offloadDispose(id): forgets the group and its file; its tensors have no values any more.
napi_value forget(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "offload", [&](Env& env, napi_value* v) -> napi_value {
    env.offloaded.erase(group_of(env, v[0]));
    return nullptr;
  });
}

}  // namespace

void define_offload(Env& env, napi_value exports) {
  constexpr Entry kEntries[] = {{"offload", offload_tensors},
                                {"offloadFetch", call_group<&Offloaded::fetch>},
                                {"offloadUse", call_group<&Offloaded::use>},
                                {"offloadDrop", call_group<&Offloaded::drop>},
                                {"offloadDispose", forget}};
  define_all(env, exports, kEntries);
}

}  // namespace bnb
