// Allocation of tensors, with the checks on sizes that every op relies on.

#include "core/tensor.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/graph.h"
#include "core/transfer.h"

namespace bnb {

Storage::Storage(Device& device, size_t nbytes)
    : device_(device), nbytes_(nbytes), block_(device.pool().take(nbytes)), changes_(device.changes()) {}

Storage::~Storage() { device_.pool().give_back(block_); }

Tensor Tensor::empty(const Shape& shape, DType dtype, Device& device) {
  int64_t numel = 1;
  bool overflow = false, empty = false;
  for (const int64_t dim : shape) {
    check_shape(dim >= 0, "tensor", "sizes must be at least 0, got ", shape);
    empty = empty || dim == 0;
    overflow = overflow || __builtin_mul_overflow(numel, dim == 0 ? 1 : dim, &numel);
  }
  if (empty) numel = 0;
  check_shape(empty || (!overflow && numel <= kMaxBytes / static_cast<int64_t>(size_of(dtype))), "tensor",
              "the size must stay below 2^53 bytes, got ", shape);
  Tensor t;
  t.shape_ = shape;
  t.dtype_ = dtype;
  t.numel_ = numel;
  t.storage_ = StorageRef(new Storage(device, t.nbytes()));
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

namespace {

constexpr size_t kInlineBytes = 160;
struct InlineUpload {
  void* to;
  size_t nbytes;
  unsigned char bytes[kInlineBytes];
};
struct StagedUpload {
  void* to;
  void* staging;
  size_t nbytes;
};

}  // namespace

Tensor upload(const void* bytes, size_t nbytes, const Shape& shape, DType dtype, Device& device) {
  Graph::check_not_recording(device, "tensor");
  Tensor t = Tensor::empty(shape, dtype, device);
  check_shape(t.nbytes() == nbytes, "tensor", "shape ", shape, " of ", name_of(dtype), " needs ", t.nbytes(),
              " bytes, got ", nbytes);
  if (nbytes == 0) return t;
  if (nbytes <= kInlineBytes) {
    InlineUpload command{t.data(), nbytes, {}};
    std::memcpy(command.bytes, bytes, nbytes);
    device.stream().push_always(
        "upload", command, +[](Device& d, const InlineUpload& u) { d.runtime().copy(d, u.to, u.bytes, u.nbytes); });
    return t;
  }
  void* staging = std::malloc(nbytes);
  if (!staging) fail(Code::oom, "upload", "no memory to stage ", nbytes, " bytes");
  std::memcpy(staging, bytes, nbytes);
  device.stream().push_always(
      "upload", StagedUpload{t.data(), staging, nbytes}, +[](Device& d, const StagedUpload& u) {
        const std::unique_ptr<void, decltype(&std::free)> staging(u.staging, std::free);
        d.runtime().copy(d, u.to, staging.get(), u.nbytes);
      });
  return t;
}

}  // namespace bnb
