// Work for the threads of the process. Bodies are in thread_pool.cc; nothing here emits a symbol.
#pragma once
#include <cstdint>

namespace bnb {

// BNB_THREADS, or one thread per core that this process may run on (affinity and container quota), the caller included.
int thread_count();

using RangeBody = void (*)(void* context, int64_t begin, int64_t end);

// Splits [0, n) into chunks of `grain` items, handed out by one atomic counter to the pool's threads and
// the caller. Runs inline when there is one chunk or the pool is busy with another environment. Nothing may leave
// the body by an exception.
void parallel_range(int64_t n, int64_t grain, RangeBody body, void* context);

}  // namespace bnb
