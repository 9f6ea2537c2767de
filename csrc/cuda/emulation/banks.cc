// See banks.h. BNB_SIMT_BANKS=<file> turns the counter on; a report looks like
//   {"grid":[1,1,1],"block":[32,1,1],"sites":[{"at":"+0x1f0c4","touch":"read","bytes":4,"accesses":8,"wavefronts":8,
//    "least":8}]}
// with `at` the address in the addon (addr2line finds its line in a build with -g) and `least` what the same accesses
// would take without conflicts.
#include "cuda/emulation/banks.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>

namespace simt {
namespace {

constexpr size_t kBanks = 32;
constexpr const char* kNames[] = {"read", "write", "cp.async", "ldmatrix"};

uintptr_t base_of_addon() {
  static const uintptr_t base = [] {
    Dl_info info{};
    return dladdr(reinterpret_cast<const void*>(&base_of_addon), &info) ? reinterpret_cast<uintptr_t>(info.dli_fbase)
                                                                        : 0;
  }();
  return base;
}

}  // namespace

void BankCounter::note(int warp, int lane, const void* site, Touch touch, size_t offset, size_t size) {
  Pending& pending = pending_[warp][{site, touch, size}];
  const uint32_t n = pending.count[static_cast<size_t>(lane)]++;
  if (n >= pending.accesses.size()) pending.accesses.resize(n + 1);
  pending.accesses[n].lanes |= 1u << lane;
  pending.accesses[n].offset[static_cast<size_t>(lane)] = static_cast<uint32_t>(offset);
}

void BankCounter::flush(int warp) {
  auto& sites = pending_[warp];
  for (const auto& [site, pending] : sites)
    for (const Access& access : pending.accesses) count(access, site.size, totals_[site]);
  sites.clear();
}

void BankCounter::count(const Access& access, size_t size, Totals& totals) {
  const size_t words = (size + 3) / 4, lanes = kBanks / words;  // of a pass
  totals.accesses++;
  for (size_t first = 0; first < kBanks; first += lanes) {
    std::array<std::vector<uint32_t>, kBanks> wanted;
    size_t most = 0;
    for (size_t lane = first; lane < first + lanes; lane++) {
      if (!(access.lanes >> lane & 1)) continue;
      for (size_t i = 0; i < words; i++) {
        const uint32_t word = access.offset[lane] / 4 + static_cast<uint32_t>(i);
        auto& bank = wanted[word % kBanks];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        most = std::max(most, bank.size());
      }
    }
    totals.wavefronts += most;
    totals.least += most > 0;
  }
}

void BankCounter::finish(dim3 grid, dim3 block, bool error) {
  if (!error) {
    if (std::FILE* file = std::fopen(path_.c_str(), "a")) {
      std::fprintf(file, "{\"grid\":[%u,%u,%u],\"block\":[%u,%u,%u],\"sites\":[", grid.x, grid.y, grid.z, block.x,
                   block.y, block.z);
      const char* comma = "";
      for (const auto& [site, totals] : totals_) {
        std::fprintf(file,
                     "%s{\"at\":\"+0x%zx\",\"touch\":\"%s\",\"bytes\":%zu,\"accesses\":%llu,\"wavefronts\":%llu,"
                     "\"least\":%llu}",
                     comma, static_cast<size_t>(reinterpret_cast<uintptr_t>(site.at) - base_of_addon()),
                     kNames[static_cast<int>(site.touch)], site.size, static_cast<unsigned long long>(totals.accesses),
                     static_cast<unsigned long long>(totals.wavefronts), static_cast<unsigned long long>(totals.least));
        comma = ",";
      }
      std::fprintf(file, "]}\n");
      std::fclose(file);
    }
  }
  pending_.clear();
  totals_.clear();
}

}  // namespace simt
