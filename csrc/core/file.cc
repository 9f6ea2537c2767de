// Positional reads and writes, straight into a CPU's memory and through a small buffer into that of a GPU.

#include "core/file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include "core/parallel_range.h"

namespace bnb {
namespace {

constexpr size_t kStaging = size_t{16} << 20;  // bytes at a time on their way to a GPU
constexpr size_t kPart = size_t{2} << 20;      // bytes that a thread reads at a time

void read_fully(int descriptor, int64_t offset, char* to, size_t nbytes) {
  constexpr size_t kMost = size_t{1} << 30;  // what one call takes everywhere
  while (nbytes > 0) {
    const int64_t n = pread(descriptor, to, std::min(nbytes, kMost), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(Code::file, "readFile", "the file could not be read: ", std::strerror(errno));
    if (n == 0)
      fail(Code::file, "readFile", "the file ends at byte ", offset, ", ", nbytes,
           " more must be there: it changed after it was opened");
    offset += n;
    to += n;
    nbytes -= static_cast<size_t>(n);
  }
}

// In parts by all threads: one copies out of the page cache, into memory that it touches for the first time, at half of
// what two do.
void read_in_parts(int descriptor, int64_t offset, char* to, size_t nbytes) {
  struct Job {
    int descriptor;
    int64_t offset;
    char* to;
    size_t nbytes;
    std::mutex mutex;
    std::optional<Error> error;  // of the first part that could not be read
    int64_t part = 0;
  } job{descriptor, offset, to, nbytes, {}, {}};
  const auto read = [](void* context, int64_t begin, int64_t end) {
    Job& j = *static_cast<Job*>(context);
    try {
      const size_t from = static_cast<size_t>(begin) * kPart;
      read_fully(j.descriptor, j.offset + static_cast<int64_t>(from), j.to + from,
                 std::min(j.nbytes, static_cast<size_t>(end) * kPart) - from);
    } catch (const Error& error) {
      const std::lock_guard lock(j.mutex);
      if (j.error && j.part < begin) return;
      j.error = error;
      j.part = begin;
    }
  };
  parallel_range(static_cast<int64_t>((nbytes + kPart - 1) / kPart), 1, read, &job);
  if (job.error) throw *job.error;
}

// An Error where there is no memory, which all that read and write files expect.
std::unique_ptr<char[]> staging_of(size_t nbytes) {
  std::unique_ptr<char[]> staging(new (std::nothrow) char[nbytes]);
  if (!staging) fail(Code::oom, "file", "no memory to stage ", nbytes, " bytes");
  return staging;
}

void write_fully(int descriptor, int64_t offset, const char* from, size_t nbytes) {
  while (nbytes > 0) {
    const int64_t n = pwrite(descriptor, from, std::min(nbytes, size_t{1} << 30), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail(Code::file, "offloadFolder", "its file could not be written: ", std::strerror(errno));
    offset += n;
    from += n;
    nbytes -= static_cast<size_t>(n);
  }
}

}  // namespace

void read_file(int descriptor, int64_t offset, void* to, size_t nbytes) {
  read_fully(descriptor, offset, static_cast<char*>(to), nbytes);
}

void write_file(Device& device, int descriptor, int64_t offset, const void* from, size_t nbytes) {
  if (device.type() == DeviceType::cpu) return write_fully(descriptor, offset, static_cast<const char*>(from), nbytes);
  const size_t step = std::min(nbytes, kStaging);
  const auto staging = staging_of(step);
  for (size_t at = 0; at < nbytes; at += step) {
    const size_t n = std::min(step, nbytes - at);
    device.runtime().copy(device, staging.get(), static_cast<const char*>(from) + at, n);
    write_fully(descriptor, offset + static_cast<int64_t>(at), staging.get(), n);
  }
}

void read_file(Device& device, int descriptor, int64_t offset, void* to, size_t nbytes) {
  if (device.type() == DeviceType::cpu) return read_in_parts(descriptor, offset, static_cast<char*>(to), nbytes);
  const size_t step = std::min(nbytes, kStaging);
  const auto staging = staging_of(step);
  for (size_t at = 0; at < nbytes; at += step) {
    const size_t n = std::min(step, nbytes - at);
    read_fully(descriptor, offset + static_cast<int64_t>(at), staging.get(), n);
    device.runtime().copy(device, static_cast<char*>(to) + at, staging.get(), n);
  }
}

int duplicate_descriptor(int descriptor) { return dup(descriptor); }
void close_descriptor(int descriptor) { close(descriptor); }

}  // namespace bnb
