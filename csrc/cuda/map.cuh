// Runs of V elements, which is how the elementwise kernels read and write: whole vectors where every address allows
// it, single elements at the end of a tensor and in views that start between two vectors.
#pragma once
#include "cuda/kernel.cuh"

namespace bnb::cuda {

constexpr int kMapThreads = 256;

// Elements that make 16 bytes, and how many of a run of V go into one load or store.
template <class T>
constexpr int kVector = static_cast<int>(16 / sizeof(T));
template <class T, int V>
constexpr int kPiece = V < kVector<T> ? V : kVector<T>;

// Whether runs of V elements of type T that start at multiples of V may be loaded as vectors; null is no operand.
template <class T, int V, class... P>
bool vectors_fit(const P*... pointers) {
  return aligned_for(sizeof(T) * kPiece<T, V>, pointers...);
}

// The first min(count, V) elements at `from`, zeros behind them. `whole`: there are V, and vectors fit.
template <int V, class T>
__device__ __forceinline__ void load_run(const T* from, int64_t count, bool whole, T (&to)[V]) {
  if (whole) {
    constexpr int N = kPiece<T, V>;
#pragma unroll
    for (int i = 0; i < V; i += N) {
      const Vec<T, N> piece = load_vec<N>(from + i);
#pragma unroll
      for (int j = 0; j < N; j++) to[i + j] = piece.v[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) to[i] = i < count ? from[i] : T{};
  }
}

template <int V, class T>
__device__ __forceinline__ void store_run(T* to, int64_t count, bool whole, const T (&from)[V]) {
  if (whole) {
    constexpr int N = kPiece<T, V>;
#pragma unroll
    for (int i = 0; i < V; i += N) {
      Vec<T, N> piece;
#pragma unroll
      for (int j = 0; j < N; j++) piece.v[j] = from[i + j];
      store_vec(to + i, piece);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; i++)
      if (i < count) to[i] = from[i];
  }
}

// The same with a conversion from and to float32.
template <int V, class T>
__device__ __forceinline__ void load_floats(const T* from, int64_t count, bool whole, float (&to)[V]) {
  T stored[V];
  load_run(from, count, whole, stored);
#pragma unroll
  for (int i = 0; i < V; i++) to[i] = widen(stored[i]);
}

// V elements as one vector.
template <int V, class T>
__device__ __forceinline__ void load_whole_floats(const T* from, float (&to)[V]) {
  if constexpr (sizeof(T) == 2) {
    constexpr int N = kPiece<T, V> / 2;
#pragma unroll
    for (int i = 0; i < V / 2; i += N) {
      const Vec<uint32_t, N> piece = load_vec<N>(reinterpret_cast<const uint32_t*>(from) + i);
#pragma unroll
      for (int j = 0; j < N; j++) widen_pair<T>(piece.v[j], to[2 * (i + j)], to[2 * (i + j) + 1]);
    }
  } else {
    load_run(from, V, true, to);
  }
}

template <int V, class T>
__device__ __forceinline__ void store_floats(T* to, int64_t count, bool whole, const float (&from)[V]) {
  T stored[V];
#pragma unroll
  for (int i = 0; i + 1 < V; i += 2) narrow_pair<T>(from[i], from[i + 1], stored[i], stored[i + 1]);
  if constexpr (V % 2 == 1) stored[V - 1] = narrow<T>(from[V - 1]);
  store_run(to, count, whole, stored);
}

// Calls f(first element, count of elements, whether they are V that vectors fit) for the runs of this thread.
template <int V, class F>
__device__ __forceinline__ void for_each_run(int64_t n, bool vectors, const F& f) {
  for (int64_t i = global_thread() * V; i < n; i += global_threads() * V) f(i, n - i, vectors && n - i >= V);
}

// Bytes that move unseen go in units: the most that divides every address and distance, up to 16 bytes. Calls f with a
// Vec of that size; `all` holds the bits of all of them.
template <class F>
void with_unit(uint64_t all, const F& f) {
  if (all % 16 == 0) return f(Vec<uint64_t, 2>{});
  if (all % 8 == 0) return f(Vec<uint64_t, 1>{});
  if (all % 4 == 0) return f(Vec<uint32_t, 1>{});
  if (all % 2 == 0) return f(Vec<uint16_t, 1>{});
  f(Vec<uint8_t, 1>{});
}
inline uint64_t bits_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_unit(const Vec<T, N>* from) {
  return load_vec<N>(from->v);
}
template <class T, int N>
__device__ __forceinline__ void store_unit(Vec<T, N>* to, const Vec<T, N>& unit) {
  store_vec(to->v, unit);
}

// The grid that for_each_run wants, with blocks of kMapThreads.
inline dim3 map_grid(const CudaStream& s, int64_t n, int per_thread) {
  return stride_grid(s, n, int64_t{kMapThreads} * per_thread);
}

}  // namespace bnb::cuda
