// Allocation of tensors, with the checks on sizes that every op relies on.

#include "core/tensor.h"

namespace bnb {

Storage::Storage(Device& device, size_t nbytes, bool lasts)
    : device_(device),
      nbytes_(nbytes),
      block_(lasts ? device.pool().take_lasting(nbytes) : device.pool().take(nbytes)),
      changes_(device.changes()) {}

Storage::~Storage() {
  if (!is_out_) device_.pool().give_back(block_);
}

void Storage::evict() {
  device_.pool().give_back(block_);
  device_.count_move();
  block_ = {};
  is_out_ = true;
}

void Storage::restore() {
  block_ = device_.pool().take(nbytes_);
  is_out_ = false;
}

void Tensor::fail_offloaded() {
  fail(Code::unsupported, "tensor", "it is offloaded, and in memory only while its layer computes");
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device& device) { return make(shape, dtype, device, false); }

Tensor Tensor::lasting(const Shape& shape, DType dtype, Device& device) { return make(shape, dtype, device, true); }

Tensor Tensor::make(const Shape& shape, DType dtype, Device& device, bool lasts) {
  const int64_t numel = shape.numel();
  check_shape(numel <= kMaxBytes / static_cast<int64_t>(size_of(dtype)), "tensor",
              "the size must stay below 2^53 bytes, got ", shape);
  Tensor t;
  t.shape_ = shape;
  t.dtype_ = dtype;
  t.numel_ = numel;
  t.storage_ = StorageRef(new Storage(device, t.nbytes(), lasts));
  return t;
}

Tensor Tensor::view(const Shape& shape, DType dtype, size_t byte_offset) const {
  Tensor t = *this;
  t.shape_ = shape;
  t.dtype_ = dtype;
  t.numel_ = shape.numel();
  t.offset_ = offset_ + byte_offset;
  return t;
}

}  // namespace bnb
