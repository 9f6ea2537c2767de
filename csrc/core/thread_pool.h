// The process-wide fork-join pool behind parallel_for (cpu/parallel.h). Shared by all environments.
#pragma once
#include "core/parallel_range.h"

namespace bnb {

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
