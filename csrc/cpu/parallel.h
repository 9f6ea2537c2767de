// What a CPU kernel may ask of the process: threads, scratch memory, and a place to report bad data. The
// bodies are in core/thread_pool.cc, compiled for the baseline; the templates have internal linkage so
// that no copy compiled for a wide ISA can be linked into the baseline.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/integer.h"
#include "core/kernel.h"
#include "core/parallel_range.h"

namespace bnb {

// A 64-byte aligned buffer of this thread, valid until the next request for the same index (0 to 5) on the
// same thread. The caller's buffer may be read by the workers of its parallel_for. Never null: a request
// that cannot be met ends the kernel through the stream's error.
void* thread_scratch(int index, size_t nbytes);

// First report wins.
void report_fault(Fault* fault, FaultCode code, int64_t value, int64_t limit);

namespace {

template <class T>
BNB_INLINE T* scratch(int index, int64_t count) {
  return static_cast<T*>(thread_scratch(index, static_cast<size_t>(count) * sizeof(T)));
}

// f(begin, end) over chunks of [0, n). Choose grain so that a chunk is at least about 20 us of work; an
// item must never split a sum, so that the result does not depend on the number of threads.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  parallel_range(
      n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<F*>(&f));
}

}  // namespace
}  // namespace bnb
