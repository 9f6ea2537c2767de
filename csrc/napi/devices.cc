// Functions of the addon that ask about devices, or set how they work: what there is, memory, threads.

#include "core/thread_pool.h"
#include "napi/bind.h"
#include "napi/guarded.h"

namespace bnb {
namespace {

void set(napi_env env, napi_value object, const char* name, const std::string& text) {
  napi_value v;
  must(env, napi_create_string_utf8(env, text.c_str(), text.size(), &v));
  must(env, napi_set_named_property(env, object, name, v));
}
void set(napi_env env, napi_value object, const char* name, double number) {
  napi_value v;
  must(env, napi_create_double(env, number, &v));
  must(env, napi_set_named_property(env, object, name, v));
}

// gpuStatus(): { missing: why no GPU, or not every GPU, is among the devices; libraries: what GPUs use beside our
// kernels }.
napi_value gpu_status(napi_env napi, napi_callback_info info) {
  return guarded<0>(napi, info, "gpuStatus", [&](Env& env, napi_value*) {
    env.find_gpus();
    napi_value object;
    must(napi, napi_create_object(napi, &object));
    set(napi, object, "missing", gpu_unavailable());
    set(napi, object, "libraries", env.devices.size() > 1 ? gpu_libraries() : "");
    return object;
  });
}

// openDevice(device): makes it usable, or throws the reason why it is not.
napi_value open_device(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "device", [&](Env& env, napi_value* v) -> napi_value {
    Device& device = device_of(env, v[0]);
    if (device.runtime().open) device.runtime().open(device);
    return nullptr;
  });
}

// provoke(device, which): queues a kernel that is wrong in a known way, on an emulated device.
napi_value provoke(napi_env napi, napi_callback_info info) {
  return guarded<2>(napi, info, "provoke", [&](Env& env, napi_value* v) -> napi_value {
    Device& device = device_of(env, v[0]);
    check_unsupported(device.runtime().provoke != nullptr, "provoke", "only an emulated device has broken kernels");
    const int32_t which = int32_of(napi, v[1]);
    device.stream().push(
        "provoke", which, +[](Device& d, const int32_t& w) { d.runtime().provoke(d, w); });
    return nullptr;
  });
}

napi_value describe(napi_env napi, const Device& device) {
  const DeviceInfo& d = device.info();
  napi_value object;
  must(napi, napi_create_object(napi, &object));
  set(napi, object, "device", device.str());
  set(napi, object, "name", d.name);
  set(napi, object, "memory", static_cast<double>(d.memory));
  set(napi, object, "computeCapability", d.cc / 10.0);
  set(napi, object, "processors", d.processors);
  set(napi, object, "isa", d.isa);
  return object;
}

// cpu(): the first device. gpus(): the others, for which the driver is asked the first time.
napi_value describe_cpu(napi_env napi, napi_callback_info info) {
  return guarded<0>(napi, info, "cpu", [&](Env& env, napi_value*) { return describe(napi, *env.devices.front()); });
}
napi_value list_gpus(napi_env napi, napi_callback_info info) {
  return guarded<0>(napi, info, "gpus", [&](Env& env, napi_value*) {
    env.find_gpus();
    napi_value list;
    must(napi, napi_create_array(napi, &list));
    for (uint32_t i = 1; i < env.devices.size(); i++)
      must(napi, napi_set_element(napi, list, i - 1, describe(napi, *env.devices[i])));
    return list;
  });
}

// threads(count): how many compute, from now on `count` unless it is 0.
napi_value threads(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "setNumThreads", [&](Env&, napi_value* v) {
    const int32_t count = int32_of(napi, v[0]);
    check_option(count >= 0 && count <= kMostThreads, "setNumThreads", "count must be from 1 to ", kMostThreads,
                 ", got ", count);
    if (count > 0) set_thread_count(count);
    napi_value number;
    must(napi, napi_create_int32(napi, thread_count(), &number));
    return number;
  });
}

// memory(device): bytes of that device; tensors counts the handles of the whole environment.
napi_value memory(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "memory", [&](Env& env, napi_value* v) {
    const Pool& pool = device_of(env, v[0]).pool();
    napi_value object;
    must(napi, napi_create_object(napi, &object));
    set(napi, object, "tensors", static_cast<double>(env.slots.live()));
    set(napi, object, "liveBytes", static_cast<double>(pool.live_bytes()));
    set(napi, object, "cachedBytes", static_cast<double>(pool.cached_bytes()));
    set(napi, object, "peakBytes", static_cast<double>(pool.peak_bytes()));
    return object;
  });
}

// emptyCache(device): gives cached blocks back to the system and starts the peak anew.
napi_value empty_cache(napi_env napi, napi_callback_info info) {
  return guarded<1>(napi, info, "emptyCache", [&](Env& env, napi_value* v) -> napi_value {
    Pool& pool = device_of(env, v[0]).pool();
    pool.empty_cache();
    pool.reset_peak();
    return nullptr;
  });
}

}  // namespace

void define_devices(Env& env, napi_value exports) {
  constexpr Entry kEntries[] = {
      {"cpu", describe_cpu}, {"gpus", list_gpus}, {"gpuStatus", gpu_status},   {"openDevice", open_device},
      {"threads", threads},  {"memory", memory},  {"emptyCache", empty_cache}, {"provoke", provoke},
  };
  define_all(env, exports, kEntries);
}

}  // namespace bnb
