// Persistent workers that look for the next job during 2 ms before they park. A job is joined by whoever is awake in
// time; the caller closes it when its items are handed out and waits only for those who joined.

#include "core/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "core/spin.h"
#include "core/system.h"
#include "cpu/parallel.h"

namespace bnb {
namespace {

int choose_thread_count() {
  const char* wanted = std::getenv("BNB_THREADS");
  const int cores = available_cores();
  if (!wanted || !*wanted) return cores;
  char* end = nullptr;
  const long n = std::strtol(wanted, &end, 10);
  if (*end == '\0' && n >= 1 && n <= kMostThreads) return static_cast<int>(n);
  std::fprintf(stderr, "bitsandbytes-node: BNB_THREADS must be a whole number from 1 to %d, got %s; using %d\n",
               static_cast<int>(kMostThreads), wanted, cores);
  return cores;
}

std::atomic<int>& wanted_threads() {
  static std::atomic<int> n{choose_thread_count()};
  return n;
}

// Waiting for another thread that is about to be done: spins, and gives its core away when that takes longer,
// because on a busy machine the other thread may not be running at all.
class Backoff {
 public:
  void wait() {
    if (++rounds_ < 1000)
      pause(1);
    else
      std::this_thread::yield();
  }

 private:
  int rounds_ = 0;
};

struct Job {
  RangeBody body = nullptr;
  void* context = nullptr;
  int64_t n = 0, grain = 1;
  alignas(64) std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};

  void run() {
    try {
      for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) return;
        body(context, begin, begin + grain < n ? begin + grain : n);
      }
    } catch (...) {
      failed = true;
      next = n;
    }
  }
};

// What a worker stays awake after a job, giving its core away to whoever wants it: longer than JavaScript takes between
// two steps of a model. A system that knows nothing of the cores' caches, as in many virtual machines, puts a thread
// that it wakes on the core of the thread that woke it, where it waits for that one's work to end.
constexpr auto kAwake = std::chrono::milliseconds(2);

thread_local bool inside_job = false;

class ThreadPool {
 public:
  explicit ThreadPool(int threads) { grow(threads); }

  ~ThreadPool() {
    {
      std::lock_guard park(park_mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // From the next job on so many threads take part, the caller included; the others stay parked. Waits for the job that
  // runs.
  void resize(int threads) {
    std::lock_guard lock(running_);
    grow(threads);
  }

  bool try_run(int64_t n, int64_t grain, RangeBody body, void* context) {
    std::unique_lock lock(running_, std::try_to_lock);
    if (!lock) return false;
    job_.body = body;
    job_.context = context;
    job_.n = n;
    job_.grain = grain;
    job_.next = 0;
    job_.failed = false;
    state_.fetch_or(kOpen, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard park(park_mutex_);
      wake_.notify_all();
    }
    inside_job = true;
    job_.run();
    inside_job = false;
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (Backoff backoff; state_.load(std::memory_order_acquire) != 0;) backoff.wait();
    if (job_.failed) throw std::bad_alloc();
    return true;
  }

 private:
  static constexpr uint32_t kOpen = 0x80000000u;  // the low bits count the workers inside

  // While no job runs.
  void grow(int threads) {
    limit_ = threads;
    try {
      for (int i = static_cast<int>(threads_.size()) + 1; i < threads; i++)
        threads_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are do the same work.
    }
  }

  bool may_join(int index) const {
    return (state_.load(std::memory_order_seq_cst) & kOpen) != 0 && index < limit_.load(std::memory_order_relaxed);
  }

  bool join(int index) {
    if (index >= limit_.load(std::memory_order_relaxed)) return false;
    uint32_t state = state_.load(std::memory_order_acquire);
    while (state & kOpen)
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  // Worker `index`; the caller of a job is number 0.
  void work(int index) {
    inside_job = true;
    auto since = SpinClock::now();
    for (;;) {
      if (join(index)) {
        job_.run();
        state_.fetch_sub(1, std::memory_order_release);
        // The job stays open until its caller notices that nothing is left.
        for (Backoff backoff; state_.load(std::memory_order_acquire) & kOpen;) backoff.wait();
        since = SpinClock::now();
      } else if (stop_.load(std::memory_order_relaxed)) {
        return;
      } else if (const auto idle = SpinClock::now() - since; idle < kSpin) {
        pause(32);
      } else if (idle < kAwake) {
        std::this_thread::yield();
      } else {
        std::unique_lock lock(park_mutex_);
        parked_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [this, index] { return may_join(index) || stop_; });
        parked_.fetch_sub(1, std::memory_order_seq_cst);
        since = SpinClock::now();
      }
    }
  }

  Job job_;
  alignas(64) std::atomic<uint32_t> state_{0};
  std::atomic<int> parked_{0}, limit_{1};
  std::atomic<bool> stop_{false};
  std::mutex running_, park_mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

std::mutex keepers_mutex;
int keepers = 0;
std::atomic<ThreadPool*> pool{nullptr};

ThreadPool& started_pool() {
  if (ThreadPool* started = pool.load(std::memory_order_acquire)) return *started;
  std::lock_guard lock(keepers_mutex);
  if (!pool.load(std::memory_order_relaxed)) pool.store(new ThreadPool(thread_count()), std::memory_order_release);
  return *pool.load(std::memory_order_relaxed);
}

// Buffers of a thread, of which the first `taken` are in use; each keeps the largest size that it was asked for.
struct ScratchStack {
  struct Buffer {
    void* data = nullptr;
    size_t capacity = 0;
  };
  std::vector<Buffer> buffers;
  size_t taken = 0;
  ~ScratchStack() {
    for (const Buffer& buffer : buffers) std::free(buffer.data);
  }
};
thread_local ScratchStack scratch;

}  // namespace

ThreadPoolKeeper::ThreadPoolKeeper() {
  std::lock_guard lock(keepers_mutex);
  keepers++;
}

ThreadPoolKeeper::~ThreadPoolKeeper() {
  std::lock_guard lock(keepers_mutex);
  if (--keepers == 0) delete pool.exchange(nullptr);
}

int thread_count() { return wanted_threads().load(std::memory_order_relaxed); }

void set_thread_count(int threads) {
  std::lock_guard lock(keepers_mutex);
  wanted_threads() = threads;
  if (ThreadPool* started = pool.load(std::memory_order_acquire)) started->resize(threads);
}

void parallel_range(int64_t n, int64_t grain, RangeBody body, void* context) {
  if (n <= 0) return;
  if (grain < 1) grain = 1;
  if (n <= grain || thread_count() == 1 || inside_job || !started_pool().try_run(n, grain, body, context)) {
    for (int64_t begin = 0; begin < n; begin += grain) body(context, begin, begin + grain < n ? begin + grain : n);
  }
}

void* take_scratch(size_t nbytes) {
  if (scratch.taken == scratch.buffers.size()) scratch.buffers.emplace_back();
  ScratchStack::Buffer& buffer = scratch.buffers[scratch.taken];
  if (buffer.capacity < nbytes || !buffer.data) {
    const size_t capacity = (nbytes + 4095) / 4096 * 4096 + 4096;
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(64, capacity);
    buffer.capacity = buffer.data ? capacity : 0;
    if (!buffer.data) throw std::bad_alloc();
  }
  scratch.taken++;
  return buffer.data;
}

void give_back_scratch() { scratch.taken--; }

void report_fault(Fault* fault, FaultCode code, int64_t value, int64_t limit) {
  int32_t none = 0;
  if (!__atomic_compare_exchange_n(&fault->code, &none, static_cast<int32_t>(code), false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_RELAXED))
    return;
  fault->value = value;
  fault->limit = limit;
}

}  // namespace bnb
