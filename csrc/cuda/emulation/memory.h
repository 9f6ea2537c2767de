// The memory of the emulated GPUs: one address range of this process, so that an access can be checked.
#pragma once
#include <cstddef>

// In a build with AddressSanitizer, what lies between blocks is poisoned; elsewhere these do nothing.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define BNB_FORBID(p, nbytes) ASAN_POISON_MEMORY_REGION(p, nbytes)
#define BNB_PERMIT(p, nbytes) ASAN_UNPOISON_MEMORY_REGION(p, nbytes)
#else
#define BNB_FORBID(p, nbytes) ((void)(p), (void)(nbytes))
#define BNB_PERMIT(p, nbytes) ((void)(p), (void)(nbytes))
#endif

namespace bnb::cuda {

// 64-byte aligned, null when the range is full.
void* arena_allocate(size_t nbytes);
void arena_release(void* block);
// Of the `capacity` bytes from the beginning of a block, only the first nbytes may be touched from now on.
void arena_resize(void* block, size_t nbytes, size_t capacity);

bool is_arena(const void* p);
// Whether all of [p, p + nbytes) may be touched.
bool is_device_memory(const void* p, size_t nbytes);
// Whether p lies in the addon's own image: tables of constants.
bool is_module_memory(const void* p);

// A kernel executed a trap: as on a GPU, the device is lost to this process.
void device_trapped();

}  // namespace bnb::cuda
