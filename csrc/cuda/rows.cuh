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

// Elements per thread and step of rows that are walked: one vector.
template <class T>
constexpr int kWalked = 16 / sizeof(T);

// How rows of n elements are shared.
struct RowPlan {
  dim3 block;
  bool held;  // in registers
};

// For kernels that hold `elements` per thread of each array of rows. The shape of a block depends on n alone, so that
// a row gives the same bits whatever stands above and below it. `pointers` are those of all arrays read in vectors.
template <class T, class... P>
RowPlan plan_rows(int64_t n, int elements, const P*... pointers) {
  const bool whole = n % static_cast<int64_t>(16 / sizeof(T)) == 0 && aligned_for(16, pointers...);
  if (n <= kWarp * elements) return {dim3(kWarp, kWarpTeams), whole};
  const int64_t threads = ceil_div(ceil_div(n, 16), kWarp) * kWarp;
  const dim3 block(static_cast<unsigned>(threads < kRowThreads ? threads : kRowThreads));
  return {block, whole && n <= kRowThreads * elements};
}

// Whose row this is: rows first_row(), + row_step(), ...
__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}
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
// before or after the vectors. What it has of a chunk is in a float[kSlots], the odd element last.
// Held: one chunk, which is vectors throughout (RowPlan).
template <class T, int Elements, bool Held>
class Row {
 public:
  using Element = T;
  static constexpr int kVec = 16 / sizeof(T), kVectors = Elements / kVec, kSlots = Elements + !Held;

  // Chunks of n elements that begin with a vector, for a team of `size` threads.
  static BNB_INLINE int chunks_of(int64_t n, int64_t size) {
    const int64_t vectors = n / kVec, most = kVectors * size;
    return Held || vectors <= most ? 1 : static_cast<int>(ceil_div(vectors, most));
  }

  // Which element of a row of n that begins with a vector has place `at` in [chunks, kSlots * size], where the slots
  // of the `size` threads lie as [Elements / 4, size, 4] and then the odd ones as [size]; -1 for none.
  static BNB_INLINE int64_t element_at(int64_t n, int64_t size, int64_t at) {
    const int64_t chunk = at / (kSlots * size), i = at % (kSlots * size);
    if (i >= Elements * size) {
      const int64_t thread = i - Elements * size;
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
      if (odd() >= 0) f(Elements);
    }
  }

  // Which element of the row a slot holds.
  __device__ __forceinline__ int64_t element(int slot) const {
    if (!Held && slot == Elements) return odd();
    return first_ + offset(slot / kVec) + slot % kVec;
  }

  // v <- the current chunk of the row p.
  __device__ __forceinline__ void load(const T* p, float (&v)[kSlots]) const {
    const T* const from = p + first_;
    Vec<T, kVec> raw[kVectors];
    if (Held || is_whole(from)) {
      each_vector([&](int r) { raw[r] = load_vec<kVec>(from + offset(r)); });
    } else {
      each_vector([&](int r) {
#pragma unroll
        for (int j = 0; j < kVec; j++) raw[r].v[j] = from[offset(r) + j];
      });
    }
    odd_one([&](int slot) { v[slot] = widen(p[odd()]); });
    each_vector([&](int r) {
#pragma unroll
      for (int j = 0; j < kVec; j++) v[r * kVec + j] = widen(raw[r].v[j]);
    });
  }

  __device__ __forceinline__ void store(T* p, const float (&v)[kSlots]) const {
    T* const to = p + first_;
    const bool whole = Held || is_whole(to);
    each_vector([&](int r) {
      Vec<T, kVec> raw;
#pragma unroll
      for (int j = 0; j < kVec; j++) raw.v[j] = narrow<T>(v[r * kVec + j]);
      if (whole) {
        store_vec(to + offset(r), raw);
      } else {
#pragma unroll
        for (int j = 0; j < kVec; j++) to[offset(r) + j] = raw.v[j];
      }
    });
    odd_one([&](int slot) { p[odd()] = narrow<T>(v[slot]); });
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

// --- online softmax statistics --------------------------------------------------------------------------------------

// The largest of some values and the sum of their exponentials relative to it.
struct TopAndSum {
  float top = -HUGE_VALF, sum = 0;

  // What to subtract before an exponential, so that a top of -infinity gives zeros and no NaN.
  static __device__ __forceinline__ float shift_of(float top) { return top == -HUGE_VALF ? 0.0f : top; }

  // Takes in the slots of the current chunk.
  template <class R>
  __device__ __forceinline__ void add(const R& row, const float (&v)[R::kSlots]) {
    float most = top;
    row.each([&](int slot) { most = fmaxf(most, v[slot]); });
    const float shift = shift_of(most);
    sum = sum * expf(top - shift);
    row.each([&](int slot) { sum += expf(v[slot] - shift); });
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
