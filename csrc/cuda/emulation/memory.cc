// A first-fit allocator over one reserved range. Blocks lie apart, and a map tells how much of each 64-byte unit is
// live.

#include "cuda/emulation/memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace bnb::cuda {
namespace {

constexpr size_t kArena = size_t{16} << 30;  // address space only
constexpr size_t kUnit = 64;
constexpr size_t kGap = 4096;  // between blocks; also keeps each block page aligned

struct Arena {
  std::mutex mutex;
  unsigned char* base;
  std::map<size_t, size_t> blocks;  // offset -> size, a multiple of kGap
  uint8_t* live;                    // leading bytes of each unit that may be touched
  size_t opened = 0;                // what lies above has never been allocated and cannot be touched

  Arena() {
    base = static_cast<unsigned char*>(map(kArena, PROT_NONE));
    live = static_cast<uint8_t*>(map(kArena / kUnit, PROT_READ | PROT_WRITE));
  }
  static void* map(size_t size, int protection) {
    void* p = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
  }
  // Lets `size` bytes from offset on be touched, and none behind them up to `end`.
  void permit(size_t offset, size_t size, size_t end) {
    for (size_t at = offset; at < end; at += kUnit)
      live[at / kUnit] = static_cast<uint8_t>(at >= offset + size ? 0 : std::min(offset + size - at, kUnit));
    BNB_PERMIT(base + offset, size);
    BNB_FORBID(base + offset + size, end - offset - size);
  }
};

Arena& arena() {
  static Arena* a = new Arena;  // outlives every worker
  return *a;
}

struct Image {
  uintptr_t from = 0, to = 0;
};

const Image& image() {
  static const Image found = [] {
    Image image;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          const auto here = reinterpret_cast<uintptr_t>(&arena);
          uintptr_t from = UINTPTR_MAX, to = 0;
          for (int i = 0; i < info->dlpi_phnum; i++) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            from = std::min<uintptr_t>(from, info->dlpi_addr + header.p_vaddr);
            to = std::max<uintptr_t>(to, info->dlpi_addr + header.p_vaddr + header.p_memsz);
          }
          if (here < from || here >= to) return 0;
          *static_cast<Image*>(out) = {from, to};
          return 1;
        },
        &image);
    return image;
  }();
  return found;
}

}  // namespace

void* arena_allocate(size_t nbytes) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (!a.base || !a.live) return nullptr;
  const size_t size = (nbytes + kGap - 1) / kGap * kGap, step = size + kGap;
  size_t at = kGap;
  for (const auto& [offset, taken] : a.blocks) {
    if (offset >= at + step) break;
    at = offset + taken + kGap;
  }
  if (nbytes > kArena || at + step > kArena) return nullptr;
  if (at + step > a.opened) {
    if (mprotect(a.base + a.opened, at + step - a.opened, PROT_READ | PROT_WRITE) != 0) return nullptr;
    BNB_FORBID(a.base + a.opened, at + step - a.opened);
    a.opened = at + step;
  }
  a.blocks[at] = size;
  a.permit(at, nbytes, at + size);
  return a.base + at;
}

void arena_resize(void* block, size_t nbytes, size_t capacity) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const size_t at = static_cast<size_t>(static_cast<unsigned char*>(block) - a.base);
  a.permit(at, nbytes, at + capacity);
}

void arena_release(void* block) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const size_t at = static_cast<size_t>(static_cast<unsigned char*>(block) - a.base);
  const auto found = a.blocks.find(at);
  if (found == a.blocks.end()) return;
  a.permit(at, 0, at + found->second);
  madvise(block, found->second, MADV_DONTNEED);
  a.blocks.erase(found);
}

bool is_arena(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - arena().base) < kArena;
}

bool is_device_memory(const void* p, size_t nbytes) {
  if (!is_arena(p)) return false;
  const Arena& a = arena();
  const size_t at = static_cast<size_t>(static_cast<const unsigned char*>(p) - a.base);
  for (size_t u = at / kUnit; u * kUnit < at + nbytes; u++)
    if (a.live[u] < std::min(at + nbytes - u * kUnit, kUnit)) return false;
  return true;
}

bool is_module_memory(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address >= image().from && address < image().to;
}

}  // namespace bnb::cuda
