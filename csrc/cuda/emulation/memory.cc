// A first-fit allocator over one reserved range. Blocks lie apart, and a bitmap tells which 64-byte units are live.

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
  std::map<size_t, size_t> blocks;  // offset -> size
  uint8_t* live;                    // one bit per unit

  Arena() {
    base = static_cast<unsigned char*>(map(kArena));
    live = static_cast<uint8_t*>(map(kArena / kUnit / 8));
  }
  static void* map(size_t size) {
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
  }
  void mark(size_t offset, size_t size, bool alive) {
    for (size_t u = offset / kUnit; u < (offset + size + kUnit - 1) / kUnit; u++) {
      const uint8_t bit = static_cast<uint8_t>(1u << (u % 8));
      live[u / 8] = static_cast<uint8_t>(alive ? live[u / 8] | bit : live[u / 8] & ~bit);
    }
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
  const size_t step = (nbytes + kGap - 1) / kGap * kGap + kGap;
  size_t at = kGap;
  for (const auto& [offset, size] : a.blocks) {
    if (offset >= at + step) break;
    at = offset + (size + kGap - 1) / kGap * kGap + kGap;
  }
  if (nbytes > kArena || at + step > kArena) return nullptr;
  a.blocks[at] = nbytes;
  a.mark(at, nbytes, true);
  unsigned char* block = a.base + at;
  BNB_FORBID(block - kGap, kGap);
  BNB_PERMIT(block, nbytes);
  BNB_FORBID(block + nbytes, step - nbytes);
  return block;
}

void arena_release(void* block) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const size_t at = static_cast<size_t>(static_cast<unsigned char*>(block) - a.base);
  const auto found = a.blocks.find(at);
  if (found == a.blocks.end()) return;
  a.mark(at, found->second, false);
  BNB_FORBID(block, found->second);
  madvise(block, (found->second + kGap - 1) / kGap * kGap, MADV_DONTNEED);
  a.blocks.erase(found);
}

bool is_arena(const void* p) {
  return static_cast<size_t>(static_cast<const unsigned char*>(p) - arena().base) < kArena;
}

bool is_device_memory(const void* p, size_t nbytes) {
  if (!is_arena(p)) return false;
  const Arena& a = arena();
  const size_t at = static_cast<size_t>(static_cast<const unsigned char*>(p) - a.base);
  for (size_t u = at / kUnit; u <= (at + nbytes - 1) / kUnit; u++)
    if (!(a.live[u / 8] >> (u % 8) & 1)) return false;
  return true;
}

bool is_module_memory(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address >= image().from && address < image().to;
}

}  // namespace bnb::cuda
