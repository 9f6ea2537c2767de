// Stream-ordered caching allocator, one per device. A block goes back at once on dispose: whatever reuses it
// is queued behind the kernels that still read it. Called from the JavaScript thread only.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

namespace bnb {

class Device;

struct Block {
  void* data = nullptr;
  size_t capacity = 0;
};

// The blocks that a graph holds: while it lives none of them goes to anybody else, and all of them count as live.
struct GraphBlocks {
  std::vector<void*> made;     // that its function took, whether a tensor still has them or not
  std::vector<void*> touched;  // of tensors from outside, whose addresses are in its commands
};

class Pool {
 public:
  explicit Pool(Device& device) : device_(device) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Throws Code::oom, after emptying the cache, with the wanted, live and cached bytes.
  Block take(size_t nbytes);
  // For bytes that are written once: a recording, whose commands write theirs at each replay, gives the block to none
  // of its other tensors, before or after.
  Block take_lasting(size_t nbytes);
  void give_back(Block block);
  // Between these, blocks come from and go to a set of their own, and those that are touched stay where they are. A
  // block of a graph that a tensor gives back later waits until release() has come from every graph that holds it.
  void begin_recording() { recording_.emplace(); }
  GraphBlocks end_recording();
  bool is_recording() const { return recording_.has_value(); }
  void release(const GraphBlocks& blocks);
  // A tensor's block, of which a recorded command gets the address.
  void touch(const Block& block);
  // Whether every tensor from outside that the graph uses still exists.
  bool has_tensors(const GraphBlocks& blocks) const;
  // Grows when a tensor gives up a block of a graph: until then has_tensors() stays what it was.
  uint64_t given_up() const { return given_up_; }
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
  Block take_recorded(size_t nbytes, size_t capacity);
  Block make_recorded(size_t nbytes, size_t capacity);
  void hold(void* block, size_t capacity, bool has_tensor);
  void poison(const Block& block, size_t nbytes);

  Device& device_;
  // What a recording has taken so far, and what of it is free again: capacity -> block; or has no tensor, but its
  // bytes.
  struct Recording {
    std::map<void*, size_t> made;
    std::set<void*> lasting;
    std::vector<void*> left;
    std::multimap<size_t, void*> unused;
    std::set<void*> touched;
  };
  struct Held {
    size_t capacity;
    int graphs;
    bool has_tensor;
  };
  std::optional<Recording> recording_;
  std::map<void*, Held> held_;  // the blocks of the graphs that exist
  uint64_t given_up_ = 0;
  std::array<Blocks, kSmallBins> small_;  // by size class
  std::map<size_t, Blocks> large_;        // by capacity; none is empty
  size_t live_bytes_ = 0;
  size_t cached_bytes_ = 0;
  size_t peak_bytes_ = 0;
};

}  // namespace bnb
