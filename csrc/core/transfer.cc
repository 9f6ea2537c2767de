// Uploads: a few bytes travel in the command itself, more of them in a copy that the worker frees.

#include "core/transfer.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/graph.h"

namespace bnb {
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
  return upload_once(bytes, nbytes, shape, dtype, device);
}

Tensor upload_once(const void* bytes, size_t nbytes, const Shape& shape, DType dtype, Device& device) {
  Tensor t = Tensor::lasting(shape, dtype, device);
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
