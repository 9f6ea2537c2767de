// The memory of the emulated GPUs: one address range of this process, so that an access can be checked.
#pragma once
#include <cstddef>

namespace bnb::cuda {

// 64-byte aligned, null when the range is full.
void* arena_allocate(size_t nbytes);
void arena_release(void* block);

bool is_arena(const void* p);
// Whether all of [p, p + nbytes) is allocated.
bool is_device_memory(const void* p, size_t nbytes);
// Whether p lies in the addon's own image: tables of constants.
bool is_module_memory(const void* p);

// A kernel executed a trap: as on a GPU, the device is lost to this process.
void device_trapped();

}  // namespace bnb::cuda
