// Counts the wavefronts of shared memory that a kernel takes, per access site: what a GPU's profiler would show.
//
// Shared memory has 32 banks of 4 bytes; in one wavefront each bank gives one word, to any number of lanes. A warp's
// access of up to 4 bytes a lane is one pass, of 8 bytes a pass per half warp, of 16 bytes one per quarter; a pass
// takes as many wavefronts as the busiest bank has different words.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/emulation/simt.h"

namespace simt {

enum class Touch : uint8_t { read, write, cp_async, ldmatrix };

class BankCounter {
 public:
  // Reports go to the end of this file, one JSON object per launch and line.
  explicit BankCounter(std::string path) : path_(std::move(path)) {}

  // Lane `lane` of a warp touches `size` bytes at this offset of its block's shared memory; `site` is the place in the
  // code. The n-th time that lanes come to a place between two rendezvous is one access of the warp.
  void note(int warp, int lane, const void* site, Touch touch, size_t offset, size_t size);
  // The warp stands at a rendezvous, or has ended.
  void flush(int warp);
  // The kernel has run. `error`: or failed, and nothing is reported.
  void finish(dim3 grid, dim3 block, bool error);

 private:
  struct Site {
    const void* at;
    Touch touch;
    size_t size;
    bool operator==(const Site&) const = default;
    auto operator<=>(const Site&) const = default;
  };
  struct Access {
    uint32_t lanes = 0;
    std::array<uint32_t, 32> offset;
  };
  struct Pending {
    std::array<uint32_t, 32> count{};  // accesses of each lane
    std::vector<Access> accesses;
  };
  struct Totals {
    uint64_t accesses = 0, wavefronts = 0, least = 0;
  };
  void count(const Access& access, size_t size, Totals& totals);

  std::string path_;
  std::unordered_map<int, std::map<Site, Pending>> pending_;  // by warp
  std::map<Site, Totals> totals_;
};

}  // namespace simt
