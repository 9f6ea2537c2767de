// A load is ordered with the stream by two gates: the stream opens the first when it comes to the point where the
// memory was taken, whose former users are then done, and waits at the second before the first user of what was loaded.

#include "core/offload.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <system_error>

#include "core/file.h"
#include "core/gate.h"
#include "core/graph.h"

namespace bnb {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kFileStep = size_t{4} << 20;  // bytes at a time between a file and a GPU

// What crosses in a command: commands are copied as bytes.
using Handed = std::shared_ptr<Load>*;

}  // namespace

struct Load {
  struct Piece {
    void* to;
    size_t at;
    size_t nbytes;
  };
  Device& device;
  std::shared_ptr<Store> store;
  std::vector<Piece> pieces;
  void* fence = nullptr;  // of the runtime: what a GPU was still doing when the gate was opened
  Gate ready, done;
  std::optional<Error> error;

  void run() {
    const Runtime& runtime = device.runtime();
    std::unique_ptr<char[]> staging;
    for (const Piece& p : pieces) {
      if (store->memory) {
        put(runtime, p.to, store->memory + p.at, p.nbytes);
      } else if (device.type() == DeviceType::cpu) {
        read_file(store->descriptor, static_cast<int64_t>(p.at), p.to, p.nbytes);
      } else {
        if (!staging) staging.reset(new char[kFileStep]);
        for (size_t done = 0; done < p.nbytes; done += kFileStep) {
          const size_t n = std::min(kFileStep, p.nbytes - done);
          read_file(store->descriptor, static_cast<int64_t>(p.at + done), staging.get(), n);
          put(runtime, static_cast<char*>(p.to) + done, staging.get(), n);
        }
      }
    }
  }
  void put(const Runtime& runtime, void* to, const void* from, size_t nbytes) {
    if (runtime.copy_aside)
      runtime.copy_aside(device, fence, to, from, nbytes);
    else
      std::memcpy(to, from, nbytes);
  }
};

Loader::Loader() {
  try {
    thread_ = std::thread([this] { work(); });
  } catch (const std::system_error& error) {
    fail(Code::oom, "offload", "reading ahead needs a thread, and the system gives none: ", error.what());
  }
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Loader::submit(std::shared_ptr<Load> load) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(load));
  }
  wake_.notify_one();
}

void Loader::work() {
  for (;;) {
    std::shared_ptr<Load> load;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      load = std::move(queue_.front());
      queue_.pop_front();
    }
    load->ready.wait();
    try {
      load->run();
    } catch (const Error& error) {
      load->error = error;
    } catch (const std::exception& error) {
      load->error = Error(Code::oom, error.what());
    }
    if (const auto end = load->device.runtime().end_aside) {
      try {
        end(load->device, load->fence);
      } catch (const Error& error) {
        if (!load->error) load->error = error;
      }
    }
    load->done.open();
  }
}

Store::Store(size_t nbytes) : memory(static_cast<char*>(std::malloc(std::max(nbytes, size_t{1})))) {
  if (!memory) fail(Code::oom, "offload", "no host memory for ", nbytes, " bytes");
}

Store::~Store() {
  std::free(memory);
  if (descriptor >= 0) close_descriptor(descriptor);
}

Offloaded::Offloaded(Loader& loader, const std::vector<Tensor>& tensors, int descriptor) : loader_(loader) {
  if (descriptor >= 0) store_ = std::make_shared<Store>(descriptor);
  size_t end = 0;
  for (const Tensor& t : tensors) {
    if (device_ && device_ != &t.device())
      fail(Code::device, "offload", "all tensors must be on one device, got ", device_->str(), " and ",
           t.device().str());
    device_ = &t.device();
    const StorageRef& storage = t.storage();
    check_argument(!storage->is_out(), "offload", "a tensor is offloaded already");
    const bool is_known = std::any_of(pieces_.begin(), pieces_.end(), [&](auto& p) { return p.storage == storage; });
    if (is_known || storage->nbytes() == 0) continue;
    pieces_.push_back({storage, end});
    end += (storage->nbytes() + kAlign - 1) / kAlign * kAlign;
  }
  if (pieces_.empty()) return;
  Graph::check_not_recording(*device_, "offload");
  if (!store_) store_ = std::make_shared<Store>(end);
  for (const Piece& p : pieces_) {
    struct Save {
      std::shared_ptr<Store>* store;
      const void* from;
      size_t at, nbytes;
    };
    device_->stream().push_always(
        "offload", Save{new std::shared_ptr<Store>(store_), p.storage->data(), p.at, p.storage->nbytes()},
        +[](Device& d, const Save& s) {
          const std::unique_ptr<std::shared_ptr<Store>> handed(s.store);
          Store& store = **handed;
          if (store.memory)
            d.runtime().copy(d, store.memory + s.at, s.from, s.nbytes);
          else
            write_file(d, store.descriptor, static_cast<int64_t>(s.at), s.from, s.nbytes);
        });
  }
  for (const Piece& p : pieces_) p.storage->evict();
}

Offloaded::~Offloaded() { drop(); }

void Offloaded::fetch() {
  if (is_here_ || pieces_.empty()) return;
  Graph::check_not_recording(*device_, "offload");
  auto load = std::make_shared<Load>(*device_, store_);
  load->pieces.reserve(pieces_.size());
  auto handed = std::make_unique<std::shared_ptr<Load>>(load);
  size_t restored = 0;
  try {
    for (; restored < pieces_.size(); restored++) {
      const Piece& p = pieces_[restored];
      p.storage->restore();
      load->pieces.push_back({p.storage->data(), p.at, p.storage->nbytes()});
    }
  } catch (...) {
    while (restored > 0) pieces_[--restored].storage->evict();
    throw;
  }
  is_here_ = true;
  load_ = load;
  loader_.submit(std::move(load));
  device_->stream().push_always(
      "offload", handed.release(), +[](Device& d, Handed const& h) {
        const std::unique_ptr<std::shared_ptr<Load>> handed(h);
        Load& load = **handed;
        try {
          if (d.runtime().fence) load.fence = d.runtime().fence(d);
        } catch (...) {
          load.ready.open();
          throw;
        }
        load.ready.open();
      });
}

void Offloaded::use() {
  fetch();
  if (!load_) return;
  auto handed = std::make_unique<std::shared_ptr<Load>>(std::move(load_));
  load_.reset();
  device_->stream().push_always(
      "offload", handed.release(), +[](Device&, Handed const& h) {
        const std::unique_ptr<std::shared_ptr<Load>> handed(h);
        Load& load = **handed;
        load.done.wait();
        if (load.error) throw *load.error;
      });
}

void Offloaded::drop() {
  if (!is_here_) return;
  use();  // or the memory would go to others while it is still being filled
  for (const Piece& p : pieces_) p.storage->evict();
  is_here_ = false;
}

}  // namespace bnb
