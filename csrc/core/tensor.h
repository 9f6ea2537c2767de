// Tensor = shared storage + shape + dtype, always contiguous. Reference counts change on the JavaScript
// thread only: queued kernels hold raw pointers, which stay valid because the pool is stream-ordered.
#pragma once
#include <utility>

#include "core/device.h"
#include "core/dtype.h"
#include "core/shape.h"

namespace bnb {

// A block of a device's pool, given back when the last tensor on it goes.
class Storage {
 public:
  Storage(Device& device, size_t nbytes, bool lasts);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device& device() const { return device_; }
  void* data() const { return block_.data; }
  // Without memory for now, as its bytes wait elsewhere: core/offload.h.
  bool is_out() const { return is_out_; }
  void evict();
  void restore();
  void touch() const { device_.pool().touch(block_); }
  size_t nbytes() const { return nbytes_; }
  Changes& changes() { return changes_; }

 private:
  friend class StorageRef;
  Device& device_;
  size_t nbytes_;
  Block block_;
  Changes changes_;
  size_t holders_ = 0;
  bool is_out_ = false;
};

// A holder of a storage. Not std::shared_ptr: its counts are atomic, and only one thread changes them here.
class StorageRef {
 public:
  StorageRef() = default;
  explicit StorageRef(Storage* storage) : storage_(storage) { retain(); }
  StorageRef(const StorageRef& other) : storage_(other.storage_) { retain(); }
  StorageRef(StorageRef&& other) noexcept : storage_(std::exchange(other.storage_, nullptr)) {}
  StorageRef& operator=(StorageRef other) noexcept {
    std::swap(storage_, other.storage_);
    return *this;
  }
  ~StorageRef() {
    if (storage_ && --storage_->holders_ == 0) delete storage_;
  }

  Storage* operator->() const { return storage_; }
  bool operator==(const StorageRef& other) const = default;
  explicit operator bool() const { return storage_ != nullptr; }

 private:
  void retain() {
    if (storage_) storage_->holders_++;
  }
  Storage* storage_ = nullptr;
};

class Tensor {
 public:
  Tensor() = default;

  // Uninitialized. Throws Code::oom, and Code::shape for negative or overflowing sizes.
  static Tensor empty(const Shape& shape, DType dtype, Device& device);
  // The same for bytes that are written once, in a recording too: Pool::take_lasting.
  static Tensor lasting(const Shape& shape, DType dtype, Device& device);

  const Shape& shape() const { return shape_; }
  int ndim() const { return shape_.ndim(); }
  int64_t numel() const { return numel_; }
  size_t nbytes() const { return static_cast<size_t>(numel_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device& device() const { return storage_->device(); }
  bool defined() const { return static_cast<bool>(storage_); }

  // Device memory: pass it to enqueue(), never read or write it here. A recording holds what it gets the address of.
  void* data() const {
    if (storage_->is_out()) [[unlikely]]
      fail_offloaded();
    if (device().pool().is_recording()) [[unlikely]]
      storage_->touch();
    return static_cast<char*>(storage_->data()) + offset_;
  }
  template <class T>
  T* ptr() const {
    return static_cast<T*>(data());
  }

  // Notes that the op in progress writes to this tensor, which existed before; all tensors on its storage change.
  const Tensor& changed() const {
    storage_->changes().add(device().changes());
    return *this;
  }
  const Changes& changes() const { return storage_->changes(); }

  // The same bytes with another shape of equal numel.
  Tensor view(const Shape& shape) const { return view(shape, dtype_, 0); }
  // The bytes from `byte_offset` as another shape and dtype; the caller guarantees that they fit.
  Tensor view(const Shape& shape, DType dtype, size_t byte_offset) const;
  // Whether some byte belongs to both.
  bool overlaps(const Tensor& other) const {
    return storage_ == other.storage_ && offset_ < other.offset_ + other.nbytes() && other.offset_ < offset_ + nbytes();
  }

  const StorageRef& storage() const { return storage_; }

 private:
  [[noreturn]] static void fail_offloaded();
  static Tensor make(const Shape& shape, DType dtype, Device& device, bool lasts);

  StorageRef storage_;
  Shape shape_;
  DType dtype_ = DType::float32;
  int64_t numel_ = 0;
  size_t offset_ = 0;
};

}  // namespace bnb
