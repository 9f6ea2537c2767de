// Stream-ordered caching allocator, one per device. A block goes back at once on dispose: whatever reuses it
// is queued behind the kernels that still read it. Called from the JavaScript thread only.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace bnb {

class Device;

struct Block {
  void* data = nullptr;
  size_t capacity = 0;
};

// The blocks of a graph: those that its function took, live or not. All of them count as live.
struct PrivateBlocks {
  std::map<void*, size_t> all;          // block -> capacity
  std::multimap<size_t, void*> unused;  // capacity -> block
};

class Pool {
 public:
  explicit Pool(Device& device) : device_(device) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Throws Code::oom, after emptying the cache, with the wanted, live and cached bytes.
  Block take(size_t nbytes);
  void give_back(Block block);
  // Between these, blocks come from and go to a set of their own. It stays apart until release_private: a block of it
  // that a tensor gives back later waits there for the graph.
  void begin_private();
  PrivateBlocks end_private();
  void release_private(PrivateBlocks blocks);
  // Returns the cached blocks to the system, in stream order, and waits for it.
  void empty_cache();

  size_t live_bytes() const { return live_bytes_; }
  size_t cached_bytes() const { return cached_bytes_; }
  size_t peak_bytes() const { return peak_bytes_; }
  void reset_peak() { peak_bytes_ = live_bytes_; }

 private:
  // Lists of their own, not links in the blocks: a queued kernel may still write there, and the host may not.
  using Blocks = std::vector<void*>;
  static constexpr int kSmallBins = 96;

  Block take_cached(size_t capacity);
  void release_largest();

  Block allocate(size_t nbytes, size_t capacity);
  void put_in_cache(Block block);
  Block take_private(size_t nbytes, size_t capacity);
  void poison(const Block& block, size_t nbytes);

  Device& device_;
  std::optional<PrivateBlocks> recording_;
  std::map<void*, bool> private_;         // blocks of graphs that exist -> whether a tensor has it, too
  std::array<Blocks, kSmallBins> small_;  // by size class
  std::map<size_t, Blocks> large_;        // by capacity; none is empty
  size_t live_bytes_ = 0;
  size_t cached_bytes_ = 0;
  size_t peak_bytes_ = 0;
};

}  // namespace bnb
