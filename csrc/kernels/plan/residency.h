// How many blocks of a kernel a multiprocessor holds at once: what the grid of a kernel is made of that goes round its
// work. A block more than that waits for another to end, and does its equal share of the work alone.
#pragma once
#include <cstdint>

#include "core/gpu.h"

namespace bnb {

// By compute capability; 7.5 has half as many, the cards without a data center's memory three quarters.
constexpr int32_t threads_per_sm(int32_t cc) {
  if (cc < 80) return 1024;
  return cc == 80 || cc == 90 || (cc >= 100 && cc < 110) ? 2048 : 1536;
}

// `registers` of a thread and bytes of shared memory of a block are the largest of tools/cuda/budget.tsv, where
// test/native/residency.test.ts looks them up.
constexpr int32_t resident_blocks(const GpuInfo& gpu, int32_t threads, int32_t registers, int64_t shared) {
  constexpr int32_t kRegisters = 65536;  // of a multiprocessor, given out to warps by 256
  constexpr int64_t kReserved = 1024;    // bytes of shared memory that every block takes, and no block gets
  const int32_t by_threads = threads_per_sm(gpu.cc) / threads;
  const int32_t by_registers = kRegisters / ((registers + 7) / 8 * 8 * threads);
  const int64_t by_shared = (gpu.shared_per_block + kReserved) / (shared + kReserved);
  int64_t blocks = by_threads < by_registers ? by_threads : by_registers;
  if (by_shared < blocks) blocks = by_shared;
  return blocks > 1 ? static_cast<int32_t>(blocks) : 1;
}

}  // namespace bnb
