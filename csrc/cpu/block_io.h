// What the blockwise quantizers share around their inner loops: widening a block, and stores that bypass the cache.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

// Elements per work item: at least 20 us at the speed of these kernels.
constexpr int64_t kBlockGrain = 1 << 16;

// The n elements at x as float32: in place when they are, else in buffer.
BNB_INLINE const float* widen(const float* x, int64_t, float*) { return x; }
template <class T>
BNB_INLINE const float* widen(const T* x, int64_t n, float* buffer) {
  int64_t i = 0;
  for (; i + F32::width <= n; i += F32::width) store(buffer + i, load(x + i));
  if (i < n) store_n(buffer + i, load_n(x + i, n - i), n - i);
  return buffer;
}

// A block is read twice with a dependency between, which leaves too few loads in flight: asking for the bytes two
// kilobytes ahead made the 4-bit quantizer 1.3 times faster on data from memory and costs nothing in the cache.
template <class T>
BNB_INLINE void prefetch_ahead(const T* x, int64_t n) {
  const char* ahead = reinterpret_cast<const char*>(x) + 2048;
  for (int64_t i = 0; i < n * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(ahead + i);
}

// A large result is not read again before it has left the cache: writing it past the cache saves reading it first.
constexpr int64_t kStreamingBytes = int64_t{16} << 20;
BNB_INLINE bool streams_well(const void* y, int64_t nbytes) {
  return BNB_ISA_LEVEL >= 1 && nbytes >= kStreamingBytes && reinterpret_cast<uintptr_t>(y) % 64 == 0;
}

#if BNB_ISA_LEVEL == 2
template <bool streaming>
BNB_INLINE void store_vector(void* y, __m512i v) {
  if constexpr (streaming) {
    _mm512_stream_si512(static_cast<__m512i*>(y), v);
  } else {
    _mm512_storeu_si512(y, v);
  }
}
#elif BNB_ISA_LEVEL == 1
template <bool streaming>
BNB_INLINE void store_vector(void* y, __m256i v) {
  if constexpr (streaming) {
    _mm256_stream_si256(static_cast<__m256i*>(y), v);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(y), v);
  }
}
#endif

// A vector of float32 as T, rounded to nearest even.
template <bool streaming, class T>
BNB_INLINE void store_block(T* y, F32 v) {
#if BNB_ISA_LEVEL >= 1
  if constexpr (streaming && sizeof(T) == 4) {
    store_vector<true>(y, bitcast(v).v);
    return;
  }
#endif
  store(y, v);
}

// Makes streamed stores visible to whoever is told that the work is done.
BNB_INLINE void finish_streaming() {
#if BNB_ISA_LEVEL >= 1
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace bnb::BNB_ISA
