// Size classes: eight per doubling up to 1 MB, so that small blocks of similar size share a bin, found by its number;
// above that multiples of 64 KB, and a cached block serves a request if it is at most an eighth too large.

#include "core/pool.h"

#include "core/device.h"
#include "core/error.h"

namespace bnb {
namespace {

constexpr size_t kMinBlock = 64;
constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kLargeStep = size_t{64} << 10;
// The cache of the CPU may hold this much, or half of what is live, whichever is more. A GPU gives memory back when it
// has no more: each block that it frees waits for all kernels.
constexpr size_t kCacheFloor = size_t{512} << 20;

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Of a small size: multiples of 64 bytes up to 512, then an eighth of a power of two apart.
int bin_of(size_t nbytes) {
  if (nbytes <= 8 * kMinBlock) return nbytes == 0 ? 0 : static_cast<int>((nbytes - 1) / kMinBlock);
  const int log2 = 63 - __builtin_clzll(nbytes - 1);
  return (log2 - 9) * 8 + static_cast<int>((nbytes - 1) >> (log2 - 3));
}

size_t capacity_of(int bin) {
  const size_t eighths = static_cast<size_t>(bin % 8 + 1);
  return bin < 8 ? eighths * kMinBlock : (8 + eighths) << (bin / 8 + 5);
}

size_t capacity_for(size_t nbytes) {
  return nbytes > kLarge ? round_up(nbytes, kLargeStep) : capacity_of(bin_of(nbytes));
}

}  // namespace

Pool::~Pool() {
  for (Blocks& blocks : small_)
    for (void* block : blocks) device_.runtime().release(device_, block);
  for (auto& [capacity, blocks] : large_)
    for (void* block : blocks) device_.runtime().release(device_, block);
}

Block Pool::take(size_t nbytes) {
  const size_t capacity = capacity_for(nbytes);
  if (recording_) return take_recorded(nbytes, capacity);
  Block block = take_cached(capacity);
  if (!block.data) block = allocate(nbytes, capacity);
  live_bytes_ += block.capacity;
  if (live_bytes_ > peak_bytes_) peak_bytes_ = live_bytes_;
  poison(block, nbytes);
  return block;
}

Block Pool::take_lasting(size_t nbytes) {
  if (!recording_) return take(nbytes);
  const Block block = make_recorded(nbytes, capacity_for(nbytes));
  recording_->lasting.insert(block.data);
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

void Pool::poison(const Block& block, size_t nbytes) {
  if (!device_.runtime().poison) return;
  struct Use {
    Block block;
    size_t nbytes;
  };
  device_.stream().push_always(
      "poison", Use{block, nbytes},
      +[](Device& device, const Use& u) { device.runtime().poison(device, u.block.data, u.nbytes, u.block.capacity); });
}

Block Pool::take_cached(size_t capacity) {
  Block block;
  if (capacity <= kLarge) {
    Blocks& blocks = small_[static_cast<size_t>(bin_of(capacity))];
    if (blocks.empty()) return block;
    block = {blocks.back(), capacity};
    blocks.pop_back();
  } else {
    const auto bin = large_.lower_bound(capacity);
    if (bin == large_.end() || bin->first > capacity + capacity / 8) return block;
    block = {bin->second.back(), bin->first};
    bin->second.pop_back();
    if (bin->second.empty()) large_.erase(bin);
  }
  cached_bytes_ -= block.capacity;
  return block;
}

void Pool::give_back(Block block) {
  if (recording_) {
    const auto own = recording_->made.find(block.data);
    if (own != recording_->made.end()) {
      if (recording_->lasting.contains(block.data)) {
        recording_->left.push_back(block.data);
      } else {
        recording_->unused.emplace(own->second, own->first);
      }
      return;
    }
  }
  if (!held_.empty()) {
    const auto found = held_.find(block.data);
    if (found != held_.end()) {
      found->second.has_tensor = false;
      given_up_++;
      return;
    }
  }
  live_bytes_ -= block.capacity;
  put_in_cache(block);
}

void Pool::put_in_cache(Block block) {
  cached_bytes_ += block.capacity;
  Blocks& blocks =
      block.capacity <= kLarge ? small_[static_cast<size_t>(bin_of(block.capacity))] : large_[block.capacity];
  blocks.push_back(block.data);
  if (device_.type() != DeviceType::cpu) return;
  const size_t limit = live_bytes_ / 2 > kCacheFloor ? live_bytes_ / 2 : kCacheFloor;
  while (cached_bytes_ > limit) release_largest();
}

Block Pool::take_recorded(size_t nbytes, size_t capacity) {
  const auto fit = recording_->unused.lower_bound(capacity);
  if (fit != recording_->unused.end() && fit->first <= capacity + capacity / 8) {
    const Block block = {fit->second, fit->first};
    recording_->unused.erase(fit);
    return block;
  }
  return make_recorded(nbytes, capacity);
}

Block Pool::make_recorded(size_t nbytes, size_t capacity) {
  const Block block = allocate(nbytes, capacity);
  recording_->made.emplace(block.data, block.capacity);
  live_bytes_ += block.capacity;
  if (live_bytes_ > peak_bytes_) peak_bytes_ = live_bytes_;
  return block;
}

void Pool::touch(const Block& block) {
  if (recording_->made.contains(block.data)) return;
  if (recording_->touched.insert(block.data).second) hold(block.data, block.capacity, true);
}

void Pool::hold(void* block, size_t capacity, bool has_tensor) {
  Held& held = held_.try_emplace(block, Held{capacity, 0, has_tensor}).first->second;
  held.graphs++;
}

GraphBlocks Pool::end_recording() {
  const Recording recording = std::move(*recording_);
  recording_.reset();
  GraphBlocks blocks;
  for (const auto& [data, capacity] : recording.made) {
    hold(data, capacity, true);
    blocks.made.push_back(data);
  }
  for (const auto& [capacity, data] : recording.unused) held_.at(data).has_tensor = false;
  for (void* data : recording.left) held_.at(data).has_tensor = false;
  blocks.touched.assign(recording.touched.begin(), recording.touched.end());
  return blocks;
}

void Pool::release(const GraphBlocks& blocks) {
  for (const auto* list : {&blocks.made, &blocks.touched}) {
    for (void* data : *list) {
      const auto found = held_.find(data);
      if (--found->second.graphs > 0) continue;
      const Held held = found->second;
      held_.erase(found);
      if (held.has_tensor) continue;  // which gives it back as any other
      live_bytes_ -= held.capacity;
      put_in_cache({data, held.capacity});
    }
  }
}

bool Pool::has_tensors(const GraphBlocks& blocks) const {
  for (void* data : blocks.touched)
    if (!held_.at(data).has_tensor) return false;
  return true;
}

void Pool::empty_cache() {
  while (cached_bytes_ > 0) release_largest();
  device_.stream().wait();
}

void Pool::release_largest() {
  const auto release_from = [this](Blocks& blocks, size_t capacity) {
    void* data = blocks.back();
    blocks.pop_back();
    cached_bytes_ -= capacity;
    device_.stream().push_always(
        "release", data, +[](Device& device, void* const& block) { device.runtime().release(device, block); });
  };
  if (!large_.empty()) {
    const auto bin = std::prev(large_.end());
    release_from(bin->second, bin->first);
    if (bin->second.empty()) large_.erase(bin);
  } else {
    int bin = kSmallBins - 1;
    while (small_[static_cast<size_t>(bin)].empty()) bin--;
    release_from(small_[static_cast<size_t>(bin)], capacity_of(bin));
  }
}

}  // namespace bnb
