// Lets the worker of one stream wait for a point in another, so that the JavaScript thread need not.
#pragma once
#include <condition_variable>
#include <mutex>

namespace bnb {

class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
};

}  // namespace bnb
