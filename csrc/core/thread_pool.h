// The process-wide fork-join pool behind parallel_for (cpu/parallel.h). Shared by all environments.
#pragma once
#include "core/parallel_range.h"

namespace bnb {

constexpr int kMostThreads = 1024;

// From now on so many threads compute, in every environment of the process: thread_count(). 1 to kMostThreads. Waits
// for the job that runs.
void set_thread_count(int threads);

// Keeps the pool's threads, which start with the first job. With the last keeper they end and are joined: the library
// may be unloaded then. Every environment is one; only work of an environment that exists may call parallel_for.
class ThreadPoolKeeper {
 public:
  ThreadPoolKeeper();
  ~ThreadPoolKeeper();
  ThreadPoolKeeper(const ThreadPoolKeeper&) = delete;
  ThreadPoolKeeper& operator=(const ThreadPoolKeeper&) = delete;
};

}  // namespace bnb
