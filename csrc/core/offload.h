// Tensors whose bytes wait in host memory or in a file, and lie in the memory of their device only while they are used:
// a thread brings them there while the device computes with others.
#pragma once
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "core/tensor.h"

namespace bnb {

struct Load;

// The thread that reads ahead, for all devices of an environment, in the order in which loads were asked for. Outlives
// the devices, whose workers wait for it.
class Loader {
 public:
  Loader();
  ~Loader();  // does what is queued, then joins
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  void submit(std::shared_ptr<Load> load);

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Load>> queue_;
  bool stop_ = false;
  std::thread thread_;
};

// Where the bytes wait: memory of the host, or an open file.
struct Store {
  explicit Store(size_t nbytes);                              // memory
  explicit Store(int descriptor) : descriptor(descriptor) {}  // a file, which it closes
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  char* memory = nullptr;
  int descriptor = -1;
};

// The storages of some tensors of one device. On the JavaScript thread, as all that takes memory.
class Offloaded {
 public:
  // Queues the writing of the tensors' bytes into the file, or into memory of the host where `descriptor` is negative,
  // and gives up their memory. The descriptor becomes its own. A failed write is the stream's error.
  Offloaded(Loader& loader, const std::vector<Tensor>& tensors, int descriptor);
  ~Offloaded();
  Offloaded(const Offloaded&) = delete;
  Offloaded& operator=(const Offloaded&) = delete;

  // Takes memory, and has it filled while what was queued before is computed. Nothing if that was done.
  void fetch();
  // Fetches, if need be; what is queued from here on may use the tensors. A failed read is the stream's error.
  void use();
  // Gives up the memory, in the order of the stream. Nothing if there is none.
  void drop();

 private:
  struct Piece {
    StorageRef storage;
    size_t at;  // in the store
  };
  Device* device_ = nullptr;
  Loader& loader_;
  std::shared_ptr<Store> store_;
  std::vector<Piece> pieces_;
  std::shared_ptr<Load> load_;  // that nothing on the stream waits for yet
  bool is_here_ = false;
};

}  // namespace bnb
