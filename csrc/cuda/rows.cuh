// Rows of a matrix, each shared by a team of threads: what softmax, the norms, cross entropy and reductions have in
// common.
//
// A team is a warp, blockDim (32, teams), or a whole block, blockDim (threads, 1). A row is held in registers where it
// fits and can be read in vectors throughout; any other is walked in chunks, and read again for each pass, mostly from
// cache.
#pragma once
#include "cuda/kernel.cuh"

namespace bnb::cuda {

constexpr int kRowThreads = 512;  // of a team at most
constexpr int kWarpTeams = 4;     // in a block
constexpr int kHeldVectors = 4;   // of 16 bytes, of each array of rows, that a thread holds in registers

// How rows of n elements are shared.
struct RowPlan {
  dim3 block;
  bool held;  // in registers
};

// `pointers` are those of the arrays read in vectors. The plan depends on n and the alignment alone, so that a row
// gives the same bits whatever stands above and below it.
template <class T, class... P>
RowPlan plan_rows(int64_t n, const P*... pointers) {
  constexpr int64_t kVec = 16 / sizeof(T), kMost = kHeldVectors * kVec;
  const bool held = n <= kRowThreads * kMost && n % kVec == 0 && aligned_for(16, pointers...);
  if (n <= kWarp * kMost) return {dim3(kWarp, kWarpTeams), held};
  const int64_t threads = ceil_div(ceil_div(n, held ? kMost : 2 * kVec), kWarp) * kWarp;
  return {dim3(static_cast<unsigned>(threads < kRowThreads ? threads : kRowThreads)), held};
}

// Whose row this is: rows first_row(), + row_step(), ...
__device__ __forceinline__ int64_t first_row() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }
__device__ __forceinline__ int64_t row_step() { return static_cast<int64_t>(gridDim.x) * blockDim.y; }

// Every thread of the team gets the result; all of it must call.
template <class S, class F>
__device__ __forceinline__ S team_reduce(S v, F f, S identity) {
  return blockDim.x == kWarp ? warp_reduce(v, f) : block_reduce(v, f, identity);
}
__device__ __forceinline__ float team_sum(float v) { return team_reduce(v, Sum{}, 0.0f); }

// Ignores a NaN. -infinity is the identity.
struct MaxOrNumber {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
__device__ __forceinline__ float team_max(float v) { return team_reduce(v, MaxOrNumber{}, -HUGE_VALF); }

// Two sums for one pass over the team.
struct SumPair {
  static __device__ __forceinline__ uint64_t pack(float a, float b) {
    return static_cast<uint64_t>(float_bits(b)) << 32 | float_bits(a);
  }
  static __device__ __forceinline__ float first(uint64_t p) { return float_from_bits(static_cast<uint32_t>(p)); }
  static __device__ __forceinline__ float second(uint64_t p) { return float_from_bits(static_cast<uint32_t>(p >> 32)); }
  __device__ __forceinline__ uint64_t operator()(uint64_t p, uint64_t q) const {
    return pack(first(p) + first(q), second(p) + second(q));
  }
};
__device__ __forceinline__ void team_sum_pair(float& a, float& b) {
  const uint64_t p = team_reduce(SumPair::pack(a, b), SumPair{}, uint64_t{0});
  a = SumPair::first(p);
  b = SumPair::second(p);
}

// How the n elements of a row of T lie over the threads of a team. Thread `rank` has, in each chunk, vectors
// rank, rank + size, ... of 16 bytes, which begin at element `head`, and in chunk 0 perhaps one of the few elements
// before or after the vectors. Its elements of a chunk are in slots, numbered by vector, the odd one last.
// Held: one chunk, which is vectors throughout (RowPlan); otherwise a chunk has one vector per thread.
template <class T, bool Held>
class Row {
 public:
  static constexpr int kVec = 16 / sizeof(T), kVectors = Held ? kHeldVectors : 1, kOdd = kVectors * kVec;
  static constexpr int kSlots = kOdd + !Held;

  // A thread's elements of a chunk of one array, as they are in memory.
  struct Data {
    Vec<T, kVec> vectors[kVectors];
    T odd;
    __device__ __forceinline__ float operator[](int slot) const {
      return widen(slot == kOdd ? odd : vectors[slot % kOdd / kVec].v[slot % kVec]);
    }
  };

  // Chunks of n elements that begin with a vector, for a team of `size` threads.
  static BNB_INLINE int chunks_of(int64_t n, int64_t size) {
    const int64_t vectors = n / kVec, most = kVectors * size;
    return Held || vectors <= most ? 1 : static_cast<int>(ceil_div(vectors, most));
  }

  // Which element of a row of n that begins with a vector has place `at` in [chunks, kSlots * size], where the slots
  // of the `size` threads lie as [kOdd / 4, size, 4] and then the odd ones as [size]; -1 for none.
  static BNB_INLINE int64_t element_at(int64_t n, int64_t size, int64_t at) {
    const int64_t chunk = at / (kSlots * size), i = at % (kSlots * size);
    if (i >= kOdd * size) {
      const int64_t thread = i - kOdd * size;
      return chunk == 0 && thread < n % kVec ? n - n % kVec + thread : -1;
    }
    const int64_t slot = i / (4 * size) * 4 + i % 4, thread = i / 4 % size;
    const int64_t vector = (chunk * kVectors + slot / kVec) * size + thread;
    return vector < n / kVec ? vector * kVec + slot % kVec : -1;
  }

  // `p` is the row whose 16-byte boundaries decide where the vectors begin; null for an address that is one.
  __device__ __forceinline__ Row(int64_t n, const T* p = nullptr) : n_(n) {
    if constexpr (!Held) {
      head_ = static_cast<int>((0 - reinterpret_cast<uintptr_t>(p) / sizeof(T)) % kVec);
      if (n < head_) head_ = static_cast<int>(n);
      chunks_ = chunks_of(n - head_, size());
    }
    go_to(0);
  }

  __device__ __forceinline__ int chunks() const { return Held ? 1 : chunks_; }
  __device__ __forceinline__ void go_to(int chunk) {
    if constexpr (Held) {
      left_ = static_cast<int>(n_ / kVec) - rank();
    } else {
      first_ = head_ + int64_t{chunk} * chunk_vectors() * kVec;
      const int64_t left = (n_ - first_) / kVec;
      left_ = (left < chunk_vectors() ? static_cast<int>(left) : chunk_vectors()) - rank();
    }
  }

  // Calls f(slot) for the slots that hold an element of the current chunk.
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    each_vector([&](int r) {
#pragma unroll
      for (int j = 0; j < kVec; j++) f(r * kVec + j);
    });
    odd_one(f);
  }
  // The same in two: f(r) for vectors, whose slots are r * kVec and the next, and f(slot) for the odd element.
  template <class F>
  __device__ __forceinline__ void each_vector(const F& f) const {
#pragma unroll
    for (int r = 0; r < kVectors; r++) {
      if (has(r)) f(r);
    }
  }
  template <class F>
  __device__ __forceinline__ void odd_one(const F& f) const {
    if constexpr (!Held) {
      if (odd() >= 0) f(kOdd);
    }
  }

  // Which element of the row a slot holds.
  __device__ __forceinline__ int64_t element(int slot) const {
    if (!Held && slot == kOdd) return odd();
    return first_ + offset(slot / kVec) + slot % kVec;
  }

  // data <- the current chunk of the row p, in vectors if p has its 16-byte boundaries where this row has them.
  __device__ __forceinline__ void load(const T* p, Data& data) const {
    const T* const from = p + first_;
    if (Held || is_whole(from)) {
      each_vector([&](int r) { data.vectors[r] = load_vec<kVec>(from + offset(r)); });
    } else {
      each_vector([&](int r) {
#pragma unroll
        for (int j = 0; j < kVec; j++) data.vectors[r].v[j] = from[offset(r) + j];
      });
    }
    odd_one([&](int) { data.odd = p[odd()]; });
  }

  // The current chunk of the row p <- value(slot).
  template <class F>
  __device__ __forceinline__ void store(T* p, const F& value) const {
    T* const to = p + first_;
    const bool whole = Held || is_whole(to);
    each_vector([&](int r) {
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; j++) out.v[j] = narrow<T>(value(r * kVec + j));
      if (whole) {
        store_vec(to + offset(r), out);
      } else {
#pragma unroll
        for (int j = 0; j < kVec; j++) to[offset(r) + j] = out.v[j];
      }
    });
    odd_one([&](int slot) { p[odd()] = narrow<T>(value(slot)); });
  }

 private:
  static __device__ __forceinline__ int rank() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int size() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ int chunk_vectors() { return kVectors * size(); }
  static __device__ __forceinline__ bool is_whole(const T* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
  __device__ __forceinline__ bool has(int r) const { return r * size() < left_; }
  __device__ __forceinline__ int offset(int r) const { return (rank() + r * size()) * kVec; }
  // This thread's element outside the vectors, or -1.
  __device__ __forceinline__ int64_t odd() const {
    if (first_ != head_) return -1;
    const int tail = static_cast<int>(n_ - head_) % kVec;
    return rank() < head_ ? rank() : rank() < head_ + tail ? n_ - tail + (rank() - head_) : -1;
  }

  int64_t n_, first_ = 0;  // first_ is the element at which the vectors of the current chunk begin
  int head_ = 0, chunks_ = 1, left_;
};

// A row in passes. Each pass visits the chunks in the direction opposite to the one before: it begins with the chunk
// that is in registers and goes on with those that the cache has had for the shortest time.
template <class R>
class Passes {
 public:
  __device__ __forceinline__ explicit Passes(R& row) : row_(row) {}

  // load(chunk), which fills registers from the current chunk of the row, then use(chunk).
  template <class Load, class Use>
  __device__ __forceinline__ void run(const Load& load, const Use& use) {
    for (int i = 0; i < row_.chunks(); i++) {
      const int chunk = forward_ ? i : row_.chunks() - 1 - i;
      if (chunk != held_) {
        row_.go_to(chunk);
        load(chunk);
        held_ = chunk;
      }
      use(chunk);
    }
    forward_ = !forward_;
  }

 private:
  R& row_;
  int held_ = -1;
  bool forward_ = true;
};

// Reads a row once: f(vectors, first, step) for 4 or 1 vectors at a time, where element j of vector k is element
// first + k * step + j of the row, and rest(x, element) for the few elements before and after the vectors. All
// vectors lie at 16-byte boundaries. n < 2^31.
template <class T, class F, class Rest>
__device__ __forceinline__ void stream_row(const T* p, int64_t n, const F& f, const Rest& rest) {
  constexpr int kVec = 16 / sizeof(T), kAhead = 4;
  const int rank = static_cast<int>(threadIdx.x), size = static_cast<int>(blockDim.x);
  int head = static_cast<int>((0 - reinterpret_cast<uintptr_t>(p) / sizeof(T)) % kVec);
  if (n < head) head = static_cast<int>(n);
  const int vectors = static_cast<int>(n - head) / kVec, tail = head + vectors * kVec;
  if (rank < head) rest(p[rank], rank);
  if (rank < static_cast<int>(n) - tail) rest(p[tail + rank], tail + rank);
  const T* from = p + head + rank * kVec;
  int left = vectors - rank;  // of this thread's and those between
  for (; left > (kAhead - 1) * size; left -= kAhead * size) {
    Vec<T, kVec> raw[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; k++) raw[k] = load_vec<kVec>(from + k * size * kVec);
    f(raw, static_cast<int>(from - p), size * kVec);
    from += kAhead * size * kVec;
  }
  for (; left > 0; left -= size) {
    const Vec<T, kVec> raw[1] = {load_vec<kVec>(from)};
    f(raw, static_cast<int>(from - p), size * kVec);
    from += size * kVec;
  }
}

// --- online softmax statistics --------------------------------------------------------------------------------------

// The largest of some values and the sum of their exponentials relative to it.
struct TopAndSum {
  float top = -HUGE_VALF, sum = 0;

  // What to subtract before an exponential, so that a top of -infinity gives zeros and no NaN.
  static __device__ __forceinline__ float shift_of(float top) { return top == -HUGE_VALF ? 0.0f : top; }

  // Takes in what each(f) gives to f.
  template <class Each>
  __device__ __forceinline__ void add(const Each& each) {
    float most = top;
    each([&](float v) { most = fmaxf(most, v); });
    const float shift = shift_of(most);
    sum = sum * expf(top - shift);
    each([&](float v) { sum += expf(v - shift); });
    top = most;
  }

  // Over all threads of the team.
  __device__ __forceinline__ void join() {
    const float most = team_max(top);
    sum = team_sum(sum * expf(top - shift_of(most)));
    top = most;
  }
};

}  // namespace bnb::cuda
