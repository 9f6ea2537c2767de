// The process-wide fork-join pool behind parallel_for (cpu/parallel.h). Shared by all environments.
#pragma once

namespace bnb {

// BNB_THREADS, or one thread per core that this process may run on (affinity and container quota).
int thread_count();

}  // namespace bnb
