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

// The buffers of a thread are a stack: what it takes is given back in reverse. Never null: a request that cannot be met
// ends the kernel through the stream's error.
void* take_scratch(size_t nbytes);
void give_back_scratch();

// First report wins.
void report_fault(Fault* fault, FaultCode code, int64_t value, int64_t limit);

namespace {

// `count` values of a thread's own memory on 64 bytes for as long as this object lives, which is a local variable, or a
// member of one. The workers of a parallel_for may use their caller's. Null if not wanted.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count, bool wanted = true)
      : data_(wanted ? static_cast<T*>(take_scratch(static_cast<size_t>(count) * sizeof(T))) : nullptr) {}
  ~Scratch() {
    if (data_) give_back_scratch();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }
  T* data() const { return data_; }  // where a template asks for a pointer

 private:
  T* const data_;
};

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
