// Checks what the threads of an emulated kernel touch: shared memory by a shadow of every byte, device memory by the
// map of live blocks. The compiler reports each load and store: a kernel's file is compiled with -fsanitize=thread, and
// the functions that this calls are those at the end of this file. A build with AddressSanitizer has no such calls.
#include <cstring>

#include "cuda/emulation/machine.h"
#include "cuda/emulation/memory.h"

namespace simt {
namespace {

bool is_shared(const unsigned char* p) { return static_cast<size_t>(p - machine().shared) < kResident * kSharedBytes; }

std::string place(const unsigned char* p) { return "shared byte " + std::to_string(p - self().block->shared); }

// Also false for the shared memory of another block: the offset is beyond that of this one, or wraps around.
bool in_shared_array(size_t offset, size_t size) {
  const Machine& m = machine();
  if (offset >= m.dynamic_offset && offset + size <= m.dynamic_offset + m.dynamic_size) return true;
  for (const SharedArray& a : m.arrays)
    if (offset >= a.offset && offset + size <= a.offset + a.size) return true;
  return false;
}

void race(const char* first, int other, const char* second, const unsigned char* p) {
  fail_kernel(std::string("race: ") + first + " by " + name_of(self().block->fibers[other]) + " and " + second +
              " by " + name_of(self()) + " of " + place(p) + " with no barrier between them");
}

void check_bounds(const unsigned char* p, size_t size, bool write) {
  if (in_shared_array(static_cast<size_t>(p - self().block->shared), size)) return;
  fail_kernel("out of bounds: " + name_of(self()) + (write ? " writes " : " reads ") + std::to_string(size) +
              " bytes at " + place(p) + ", outside every shared array");
}

void shared_access(const unsigned char* p, size_t size, bool write, bool delivery = false) {
  Block& b = *self().block;
  const size_t offset = static_cast<size_t>(p - b.shared);
  check_bounds(p, size, write);
  const int me = self().id, warp = me / kWarp;
  const uint32_t block = b.epoch, now = b.warp_epoch[static_cast<size_t>(warp)];
  for (size_t i = 0; i < size; i++) {
    Shadow& s = b.shadow[offset + i];
    if (s.pending && !delivery)
      fail_kernel("cp.async: " + name_of(self()) + (write ? " writes " : " reads ") + place(p + i) +
                  " before the copy to it was waited for");
    if (s.write_block == block && s.writer != me && !(s.writer / kWarp == warp && s.write_warp < now))
      race("write", s.writer, write ? "write" : "read", p + i);
    if (write) {
      if (s.read_block == block) {
        const bool same_warp = s.reader / kWarp == warp && !s.other_warps;
        const bool mine = s.reader == me && !s.other_lanes && !s.other_warps;
        if (!mine && !(same_warp && s.read_warp < now)) race("read", s.reader, "write", p + i);
      }
      s.write_block = block;
      s.write_warp = now;
      s.writer = static_cast<uint16_t>(me);
    } else if (s.read_block != block) {
      s.read_block = block;
      s.read_warp = now;
      s.reader = static_cast<uint16_t>(me);
      s.other_lanes = s.other_warps = false;
    } else if (s.reader / kWarp != warp) {
      s.other_warps = true;
    } else if (s.read_warp < now) {
      s.read_warp = now;
      s.reader = static_cast<uint16_t>(me);
      s.other_lanes = false;
    } else if (s.reader != me) {
      s.other_lanes = true;
    }
  }
}

void deliver(const PendingCopy& copy) {
  Block& b = *self().block;
  const size_t offset = static_cast<size_t>(copy.to - b.shared);
  shared_access(copy.to, copy.size, true, true);
  for (size_t i = 0; i < copy.size; i++) b.shadow[offset + i].pending = false;
  if (copy.valid)
    std::memcpy(copy.to, copy.from, copy.size);
  else
    std::memset(copy.to, 0, copy.size);
}

// What a kernel may touch besides shared memory: live device memory, the threads' stacks, the addon's constants.
void global_access(const unsigned char* p, size_t size, bool write) {
  const Machine& m = machine();
  if (static_cast<size_t>(p - m.stacks) < kResident * kMaxThreads * (kStack + kPage)) return;
  // threadIdx lives in the fiber.
  const auto* fibers = reinterpret_cast<const unsigned char*>(m.fibers.data());
  if (static_cast<size_t>(p - fibers) < kResident * kMaxThreads * sizeof(Fiber)) return;
  if (static_cast<size_t>(p - m.host_frame) < kHostFrames) return;
  if (static_cast<size_t>(p - m.lanes.data()) < m.lanes.size()) return;  // a shuffle, inlined into the kernel
  if (bnb::cuda::is_device_memory(p, size) || bnb::cuda::is_module_memory(p)) return;
  fail_kernel("illegal address: " + name_of(self()) + " of " + name_of(*self().block) +
              (write ? " writes " : " reads ") + std::to_string(size) +
              (bnb::cuda::is_arena(p) ? " bytes outside every live block of device memory" : " bytes of host memory"));
}

void note(const unsigned char* p, size_t size, Touch touch, const void* site) {
  const Fiber& f = self();
  const int warp = (f.block->slot * kMaxThreads + f.id) / kWarp;
  machine().banks->note(warp, f.id % kWarp, site, touch, static_cast<size_t>(p - f.block->shared), size);
}

// A load or store of several elements. The compiler reports those one by one.
void note_vector(const void* address, size_t size, Touch touch, const void* site) {
  const auto* p = static_cast<const unsigned char*>(address);
  if (!is_shared(p)) return;
  Fiber& f = self();
  note(p, size, touch, site);
  f.vector = static_cast<uint32_t>(p - f.block->shared);
  f.vector_size = static_cast<uint32_t>(size);
}

void note_element(const unsigned char* p, size_t size, bool write, const void* site) {
  Fiber& f = self();
  const auto offset = static_cast<uint32_t>(p - f.block->shared);
  if (offset - f.vector < f.vector_size) return;
  f.vector_size = 0;
  note(p, size, write ? Touch::write : Touch::read, site);
}

void fill_with_poison(unsigned char* from, size_t size) {
  for (size_t i = 0; i < size; i++) from[i] = static_cast<unsigned char>(kPoison >> (8 * (i % 4)));
}

}  // namespace

void access(const void* address, size_t size, bool write, const void* site) {
  if (!current) return;
  const auto* p = static_cast<const unsigned char*>(address);
  if (is_shared(p)) {
    if (site && machine().banks) note_element(p, size, write, site);
    shared_access(p, size, write);
  } else {
    if (bnb::cuda::is_arena(p)) step();
    global_access(p, size, write);
  }
}

void check_atomic(const void* address, size_t size) {
  check_alignment(address, size, size, true);
  const auto* p = static_cast<const unsigned char*>(address);
  if (is_shared(p))
    check_bounds(p, size, true);
  else
    global_access(p, size, true);
}

void poison_shared(const Block& block) {
  const Machine& m = machine();
  fill_with_poison(block.shared + m.dynamic_offset, m.dynamic_size);
  for (const SharedArray& a : m.arrays) fill_with_poison(block.shared + a.offset, a.size);
}

void check_access(const void* p, size_t size, size_t alignment, bool write) {
  if (!current) return;
  if (machine().banks) note_vector(p, size, write ? Touch::write : Touch::read, __builtin_return_address(0));
  check_alignment(p, size, alignment, write);
}

void check_alignment(const void* p, size_t size, size_t alignment, bool write) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fail_kernel("misaligned address: " + name_of(self()) + (write ? " writes " : " reads ") + std::to_string(size) +
                " bytes at an address that is no multiple of " + std::to_string(alignment));
}

void* shared_array(const void* site, const char* name, size_t size, size_t alignment) {
  Machine& m = machine();
  for (const SharedArray& a : m.arrays)
    if (a.site == site) return self().block->shared + a.offset;
  const size_t unit = std::max(alignment, size_t{128});
  const size_t offset = (m.shared_top + unit - 1) / unit * unit;
  m.static_bytes += size;
  if (m.static_bytes > kStaticLimit || offset + size + kRedZone > kSharedBytes)
    fail_kernel(std::string("shared memory: ") + name + " makes " + std::to_string(m.static_bytes) +
                " bytes, a kernel may declare 48 KB");
  if (m.static_bytes + m.dynamic_size > m.shared_limit)
    fail_kernel(std::string("shared memory: ") + name + " makes " + std::to_string(m.static_bytes) + " static and " +
                std::to_string(m.dynamic_size) + " dynamic bytes, the kernel may have " +
                std::to_string(m.shared_limit));
  m.arrays.push_back({site, offset, size});
  m.shared_top = (offset + size + kRedZone + 127) / 128 * 128;
  // The first thread to come here: nobody has touched it in any block.
  for (const Block& b : m.blocks) {
    BNB_PERMIT(b.shared + offset, size);
    fill_with_poison(b.shared + offset, size);
  }
  return self().block->shared + offset;
}

unsigned char* dynamic_shared() { return self().block->shared + machine().dynamic_offset; }

void cp_async(void* to, const void* from, size_t size, bool valid) {
  auto* target = static_cast<unsigned char*>(to);
  const auto* source = static_cast<const unsigned char*>(from);
  if (machine().banks) note_vector(to, size, Touch::cp_async, __builtin_return_address(0));
  check_alignment(to, size, size, true);
  Block& b = *self().block;
  if (static_cast<size_t>(target - b.shared) >= kSharedBytes)
    fail_kernel("cp.async: " + name_of(self()) + " copies to an address outside shared memory");
  if (valid) {
    check_alignment(from, size, size, false);
    global_access(source, size, false);
  }
  shared_access(target, size, true);
  for (size_t i = 0; i < size; i++) b.shadow[static_cast<size_t>(target - b.shared) + i].pending = true;
  std::memset(target, 0xfa, size);
  self().open.push_back({target, source, size, valid});
}

void cp_async_commit() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void cp_async_wait(int groups_under_way) {
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > groups_under_way) {
    for (const PendingCopy& copy : groups.front()) deliver(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace simt

// --- what the compiler calls before each load and store of a kernel file ---------------------------------------------

#define BNB_ACCESS(size)                                                                                   \
  void __tsan_read##size(void* p) { simt::access(p, size, false, __builtin_return_address(0)); }           \
  void __tsan_write##size(void* p) { simt::access(p, size, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##size(void* p) { simt::access(p, size, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##size(void* p) { simt::access(p, size, true, __builtin_return_address(0)); }

extern "C" {
BNB_ACCESS(1)
BNB_ACCESS(2)
BNB_ACCESS(4)
BNB_ACCESS(8)
BNB_ACCESS(16)
void __tsan_read_range(void* p, size_t size) { simt::access(p, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t size) { simt::access(p, size, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
