// Host to device: the bytes are copied before the call returns, the copy to the device is queued.
#pragma once
#include "core/tensor.h"

namespace bnb {

// A new tensor holding the first nbytes of `bytes`; nbytes must equal the size of shape and dtype.
Tensor upload(const void* bytes, size_t nbytes, const Shape& shape, DType dtype, Device& device);
// The same, also while the device records: the copy is no part of the graph.
Tensor upload_once(const void* bytes, size_t nbytes, const Shape& shape, DType dtype, Device& device);

}  // namespace bnb
