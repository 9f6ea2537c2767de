// Size classes: eight per doubling up to 1 MB, so that small blocks of similar size share a bin; above that
// multiples of 64 KB, and a cached block serves a request if it is at most an eighth too large.

#include "core/pool.h"

#include "core/device.h"
#include "core/error.h"

namespace bnb {
namespace {

constexpr size_t kMinBlock = 64;
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kLargeStep = size_t{64} << 10;
// The cache may hold this much, or half of what is live, whichever is more.
constexpr size_t kCacheFloor = size_t{512} << 20;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

size_t capacity_for(size_t nbytes) {
  if (nbytes <= kMinBlock) return kMinBlock;
  if (nbytes > kLarge) return round_up(nbytes, kLargeStep);
  const int log2 = 63 - __builtin_clzll(nbytes);
  const size_t step = log2 >= 9 ? size_t{1} << (log2 - 3) : kMinBlock;
  return round_up(nbytes, step);
}

}  // namespace

Pool::~Pool() {
  for (auto& [capacity, blocks] : cache_)
    for (void* block : blocks) device_.runtime().release(device_, block);
}

Block Pool::take(size_t nbytes) {
  const size_t capacity = capacity_for(nbytes);
  if (recording_) return take_private(nbytes, capacity);
  const size_t largest = capacity > kLarge ? capacity + capacity / 8 : capacity;
  Block block;
  const auto bin = cache_.lower_bound(capacity);
  if (bin != cache_.end() && bin->first <= largest) {
    block = {bin->second.back(), bin->first};
    bin->second.pop_back();
    if (bin->second.empty()) cache_.erase(bin);
    cached_bytes_ -= block.capacity;
  } else {
    block = allocate(nbytes, capacity);
  }
  live_bytes_ += block.capacity;
  if (live_bytes_ > peak_bytes_) peak_bytes_ = live_bytes_;
  poison(block);
  return block;
}

Block Pool::allocate(size_t nbytes, size_t capacity) {
  Block block = {device_.runtime().allocate(device_, capacity), capacity};
  if (!block.data && cached_bytes_ > 0) {
    empty_cache();
    block.data = device_.runtime().allocate(device_, capacity);
  }
  if (!block.data)
    fail(Code::oom, device_.str().c_str(), "out of memory: wanted ", nbytes, " bytes, live ", live_bytes_, ", cached ",
         cached_bytes_, ", the device has ", device_.info().memory);
  return block;
}

void Pool::poison(const Block& block) {
  if (!device_.runtime().poison) return;
  device_.stream().push_always(
      "poison", block, +[](Device& device, const Block& b) { device.runtime().poison(device, b.data, b.capacity); });
}

void Pool::give_back(Block block) {
  if (recording_) {
    const auto own = recording_->all.find(block.data);
    if (own != recording_->all.end()) {
      recording_->unused.emplace(own->second, own->first);
      return;
    }
  }
  const auto found = private_.find(block.data);
  if (found != private_.end()) {
    found->second = false;
    return;
  }
  live_bytes_ -= block.capacity;
  put_in_cache(block);
}

void Pool::put_in_cache(Block block) {
  cached_bytes_ += block.capacity;
  cache_[block.capacity].push_back(block.data);
  const size_t limit = live_bytes_ / 2 > kCacheFloor ? live_bytes_ / 2 : kCacheFloor;
  while (cached_bytes_ > limit) release_one(std::prev(cache_.end()));
}

Block Pool::take_private(size_t nbytes, size_t capacity) {
  const auto fit = recording_->unused.lower_bound(capacity);
  if (fit != recording_->unused.end() && fit->first <= capacity + capacity / 8) {
    const Block block = {fit->second, fit->first};
    recording_->unused.erase(fit);
    return block;
  }
  const Block block = allocate(nbytes, capacity);
  recording_->all.emplace(block.data, block.capacity);
  live_bytes_ += block.capacity;
  if (live_bytes_ > peak_bytes_) peak_bytes_ = live_bytes_;
  return block;
}

void Pool::begin_private() { recording_.emplace(); }

PrivateBlocks Pool::end_private() {
  PrivateBlocks blocks = std::move(*recording_);
  recording_.reset();
  for (const auto& [data, capacity] : blocks.all) private_[data] = true;
  for (const auto& [capacity, data] : blocks.unused) private_[data] = false;
  return blocks;
}

void Pool::release_private(PrivateBlocks blocks) {
  for (const auto& [data, capacity] : blocks.all) {
    const auto found = private_.find(data);
    const bool has_tensor = found->second;
    private_.erase(found);
    if (has_tensor) continue;  // which gives it back as any other
    live_bytes_ -= capacity;
    put_in_cache({data, capacity});
  }
}

void Pool::empty_cache() {
  while (!cache_.empty()) release_one(cache_.begin());
  device_.stream().wait();
}

void Pool::release_one(std::map<size_t, std::vector<void*>>::iterator bin) {
  void* data = bin->second.back();
  cached_bytes_ -= bin->first;
  bin->second.pop_back();
  if (bin->second.empty()) cache_.erase(bin);
  device_.stream().push_always(
      "release", data, +[](Device& device, void* const& block) { device.runtime().release(device, block); });
}

}  // namespace bnb
