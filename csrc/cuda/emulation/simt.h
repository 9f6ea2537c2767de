// SIMT on the CPU: what CUDA's headers give a .cu file, for a build without them. Each CUDA thread of a block is a
// fiber of one thread, and simt.cc looks for what a GPU would let pass: see there.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace simt {

struct Thread {
  uint3 index;
};
// The fiber that runs on this thread, null outside a kernel: another device's worker may run host code meanwhile.
extern __thread Thread* current __attribute__((tls_model("initial-exec")));
extern uint3 block_index;
extern dim3 block_size, grid_size;

// What a kernel may have of shared memory, static and dynamic, that was not allowed more.
constexpr size_t kDefaultShared = 48 << 10;

// Runs the body once per thread of the grid. `limit`: bytes of shared memory, static and dynamic, that the kernel may
// have. Throws bnb::Error(Code::cuda) for what the checks find.
void launch(dim3 grid, dim3 block, size_t shared, size_t limit, const std::function<void()>& body);

enum class Scope { warp, block };
// Parks the thread until all of its warp or block are at the same place.
void rendezvous(Scope scope, const char* what, int line);
// Around an atomic: the address is checked, and others may come before and after it.
void begin_atomic(const void* p, size_t size);
void end_atomic();
[[noreturn]] void trap();
// Aligned access of `size` bytes; for vectors, which a CPU would load from anywhere.
void check_access(const void* p, size_t size, size_t alignment, bool write);

void* shared_array(const void* site, const char* name, size_t size, size_t alignment);
unsigned char* dynamic_shared();
template <class T>
T& shared(const void* site, const char* name) {
  return *static_cast<T*>(shared_array(site, name, sizeof(T), alignof(T)));
}

void cp_async(void* to, const void* from, size_t size, bool valid);
void cp_async_commit();
void cp_async_wait(int groups_under_way);

constexpr int kLaneBytes = 64;
// Deposits the bytes of this lane, waits for the warp, and returns the deposits of all 32 lanes, kLaneBytes apart.
const unsigned char* exchange(const void* bytes, size_t size, const char* what, int line);
int lane();

template <class T, class Pick>
T shuffle(const char* what, int line, T value, Pick source) {
  static_assert(sizeof(T) <= kLaneBytes);
  const unsigned char* all = exchange(&value, sizeof value, what, line);
  T result;
  std::memcpy(&result, all + static_cast<size_t>(source(lane()) & 31) * kLaneBytes, sizeof result);
  return result;
}
uint32_t ballot(const char* what, int line, bool predicate);

void ldmatrix(uint32_t* r, int count, const void* row, bool transpose);
void mma_float(float* d, const float* a, int a_count, const float* b, int b_count, int k);
void mma_int(int32_t* d, const uint32_t* a, int a_count, const uint32_t* b, int b_count, int rows, int k);

template <int K, int A, int B>
void mma_half(float (&d)[4], const uint32_t (&a)[A], const uint32_t (&b)[B], float (*half)(uint32_t, int)) {
  float fa[2 * A], fb[2 * B];
  for (int i = 0; i < 2 * A; i++) fa[i] = half(a[i / 2], i % 2);
  for (int i = 0; i < 2 * B; i++) fb[i] = half(b[i / 2], i % 2);
  mma_float(d, fa, 2 * A, fb, 2 * B, K);
}
template <int Rows, int K, int D, int A, int B>
void mma_int8(int32_t (&d)[D], const uint32_t (&a)[A], const uint32_t (&b)[B]) {
  static_assert(D == Rows / 4);
  mma_int(d, a, A, b, B, Rows, K);
}

}  // namespace simt

namespace bnb {
struct CudaStream;
}
namespace bnb::cuda {

// What launch() of kernel.cuh does with a kernel, whose address tells it from others: `body` runs it as one thread.
void launch_emulated(CudaStream& s, const void* kernel, dim3 grid, dim3 block, size_t shared,
                     std::function<void()> body);

}  // namespace bnb::cuda

#define threadIdx (::simt::current->index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_size)
#define gridDim (::simt::grid_size)
constexpr int warpSize = 32;

#define __syncthreads() ::simt::rendezvous(::simt::Scope::block, "__syncthreads", __LINE__)
#define __syncwarp(...) ::simt::rendezvous(::simt::Scope::warp, "__syncwarp", __LINE__)
#define __shfl_sync(mask, v, source) \
  ::simt::shuffle("__shfl_sync", __LINE__, v, [&](int) { return static_cast<int>(source); })
#define __shfl_xor_sync(mask, v, bits) \
  ::simt::shuffle("__shfl_xor_sync", __LINE__, v, [&](int lane) { return lane ^ static_cast<int>(bits); })
#define __shfl_down_sync(mask, v, delta)                                                \
  ::simt::shuffle("__shfl_down_sync", __LINE__, v, [&](int lane) {                      \
    return lane + static_cast<int>(delta) < 32 ? lane + static_cast<int>(delta) : lane; \
  })
#define __shfl_up_sync(mask, v, delta)           \
  ::simt::shuffle("__shfl_up_sync", __LINE__, v, \
                  [&](int lane) { return lane >= static_cast<int>(delta) ? lane - static_cast<int>(delta) : lane; })
#define __ballot_sync(mask, predicate) ::simt::ballot("__ballot_sync", __LINE__, static_cast<bool>(predicate))
#define __any_sync(mask, predicate) (::simt::ballot("__any_sync", __LINE__, static_cast<bool>(predicate)) != 0)
#define __all_sync(mask, predicate) \
  (::simt::ballot("__all_sync", __LINE__, static_cast<bool>(predicate)) == 0xffffffffu)
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)
#define __trap() ::simt::trap()

#define BNB_UNCHECKED __attribute__((no_sanitize("thread")))

// *p = change(*p), with what others may do before and after it.
template <class T, class F>
BNB_UNCHECKED inline T change_atomically(T* p, const F& change) {
  ::simt::begin_atomic(p, sizeof(T));
  const T old = *p;
  *p = change(old);
  ::simt::end_atomic();
  return old;
}
template <class T, class U>
inline T atomicAdd(T* p, U v) {
  return change_atomically(p, [&](T old) { return static_cast<T>(old + static_cast<T>(v)); });
}
template <class T, class U>
inline T atomicMax(T* p, U v) {
  return change_atomically(p, [&](T old) { return std::max(old, static_cast<T>(v)); });
}
template <class T, class U>
inline T atomicMin(T* p, U v) {
  return change_atomically(p, [&](T old) { return std::min(old, static_cast<T>(v)); });
}
template <class T, class U>
inline T atomicOr(T* p, U v) {
  return change_atomically(p, [&](T old) { return static_cast<T>(old | static_cast<T>(v)); });
}
template <class T, class U>
inline T atomicAnd(T* p, U v) {
  return change_atomically(p, [&](T old) { return static_cast<T>(old & static_cast<T>(v)); });
}
template <class T, class U>
inline T atomicExch(T* p, U v) {
  return change_atomically(p, [&](T) { return static_cast<T>(v); });
}
template <class T, class U, class V>
inline T atomicCAS(T* p, U expected, V v) {
  return change_atomically(p, [&](T old) { return old == static_cast<T>(expected) ? static_cast<T>(v) : old; });
}
template <class T, class U>
inline T atomicInc(T* p, U limit) {
  return change_atomically(p, [&](T old) { return old >= static_cast<T>(limit) ? T{} : static_cast<T>(old + 1); });
}

inline unsigned __float_as_uint(float x) {
  unsigned u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __uint_as_float(unsigned u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline float __int_as_float(int i) { return __uint_as_float(static_cast<unsigned>(i)); }
inline long long __double_as_longlong(double x) {
  long long i;
  std::memcpy(&i, &x, 8);
  return i;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
using std::max;
using std::min;
inline int64_t min(int64_t a, int b) { return a < b ? a : b; }
inline int64_t min(int a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int b) { return a > b ? a : b; }
inline int64_t max(int a, int64_t b) { return a > b ? a : b; }
