// What was changed in place, and when. A storage counts its changes; the clock that an environment's devices share says
// whether the last of them came after a given moment, such as the one at which a tensor was saved for backward. Of the
// JavaScript thread only.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace bnb {

// The replays of one graph: each changes all that its commands write to.
struct Replays {
  uint64_t count = 0;
  double last = 0;
};

// The clock of a device.
class ChangeClock {
 public:
  // The devices of an environment count in one cell, which JavaScript reads without a call.
  void share(double* cell) { cell_ = cell; }
  double tick() { return ++*cell_; }

  // While a graph is recorded nothing changes: what is written to then changes with each of its replays.
  void begin_recording() { recording_ = std::make_shared<Replays>(); }
  std::shared_ptr<Replays> end_recording() { return std::exchange(recording_, nullptr); }
  const std::shared_ptr<Replays>& recording() const { return recording_; }

 private:
  double own_ = 0;
  double* cell_ = &own_;
  std::shared_ptr<Replays> recording_;
};

// The changes of one storage.
class Changes {
 public:
  // Of a storage that is made now: by a graph's recording, or not.
  explicit Changes(const ChangeClock& clock) {
    if (clock.recording()) [[unlikely]]
      replays_.push_back(clock.recording());
  }
  void add(ChangeClock& clock) {
    const auto& recording = clock.recording();
    if (!recording) {
      count_++;
      last_ = clock.tick();
    } else if (replays_.empty() || replays_.back() != recording) {
      replays_.push_back(recording);
    }
  }
  uint64_t count() const {
    uint64_t count = count_;
    for (const auto& r : replays_) count += r->count;
    return count;
  }
  // On the clock; 0 for never.
  double last() const {
    double last = last_;
    for (const auto& r : replays_) last = r->last > last ? r->last : last;
    return last;
  }

 private:
  uint64_t count_ = 0;
  double last_ = 0;
  std::vector<std::shared_ptr<Replays>> replays_;
};

}  // namespace bnb
