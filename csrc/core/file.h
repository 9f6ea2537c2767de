// Bytes of a file into the memory of a device.
#pragma once
#include "core/device.h"

namespace bnb {

// On the worker: fills [to, to + nbytes) of the device's memory with the bytes of an open file from `offset` on. Throws
// Code::file when the file cannot be read or ends before.
void read_file(Device& device, int descriptor, int64_t offset, void* to, size_t nbytes);

// On any thread: the same into memory of the host.
void read_file(int descriptor, int64_t offset, void* to, size_t nbytes);

// On the worker: writes bytes of the device's memory to an open file, from `offset` on. Throws Code::file.
void write_file(Device& device, int descriptor, int64_t offset, const void* from, size_t nbytes);

// An own descriptor of the same open file, so that the caller may close his; -1 when there is none to be had.
int duplicate_descriptor(int descriptor);
void close_descriptor(int descriptor);

}  // namespace bnb
