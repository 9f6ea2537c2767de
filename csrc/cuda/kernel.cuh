// What every .cu file starts from: launch(), shared memory, vector loads, conversions, reductions. The same file
// compiles with nvcc and, for the emulated device, with g++ after emulation/simt.h.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

#include "core/integer.h"
#include "core/kernel.h"
#include "cuda/convert.cuh"
#include "cuda/stream.h"

namespace bnb::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kFullMask = 0xffffffffu;

// BNB_SHARED(float[32], partial): an array that the threads of a block share.
// BNB_DYNAMIC_SHARED(bytes): an unsigned char*, as large as the launch says, aligned to 128 bytes.
#if defined(__CUDACC__)
template <class T>
struct SharedType {
  using type = T;
};
// Of a kernel's parameter: it stays where it is also when its address is taken.
#define BNB_GRID_CONSTANT __grid_constant__
#define BNB_SHARED(T, name) __shared__ typename ::bnb::cuda::SharedType<T>::type name
#define BNB_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#define BNB_GRID_CONSTANT
#define BNB_SHARED(T, name)          \
  static const char name##_site = 0; \
  auto& name = ::simt::shared<T>(&name##_site, #name)
#define BNB_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::dynamic_shared()
#endif

// A device function that stays one: for what runs rarely, so that it takes neither code nor registers of a loop.
#if defined(__CUDACC__)
#define BNB_OUT_OF_LINE __device__ __noinline__
#else
#define BNB_OUT_OF_LINE
#endif

// Queues kernel(args...) on the stream. An empty grid does nothing. `shared` is the size of BNB_DYNAMIC_SHARED.
template <class... P, class... A>
void launch(CudaStream& s, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, const A&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check_grid(grid.x, grid.y, grid.z, uint64_t{block.x} * block.y * block.z, shared, s.gpu);
#if defined(__CUDACC__)
  if (shared > (48 << 10))
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(s.handle)>>>(static_cast<P>(args)...);
#else
  try {
    ::simt::launch(grid, block, shared, [kernel, ... copy = static_cast<P>(args)] { kernel(copy...); });
  } catch (...) {  // and a GPU would be lost, but here other kernels follow
    for (int i = 0; i < kCounters; i++) s.counters[i] = 0;
    throw;
  }
#endif
  check_launch("launch");
}

// Blocks for a grid-stride loop over n items, `per_block` at a time: enough to fill the card, no more.
inline dim3 stride_grid(const CudaStream& s, int64_t n, int64_t per_block) {
  const int64_t blocks = ceil_div(n, per_block), most = int64_t{s.gpu.sms} * 32;
  return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
}

// First item of this thread in a grid-stride loop, and the step to its next.
__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// --- vectors: one load or store of 2, 4, 8 or 16 bytes; the address must be a multiple of the size ----------------

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  static_assert(sizeof(T) * N <= 16);
#if !defined(__CUDACC__)
  ::simt::check_access(from, sizeof(T) * N, alignof(Vec<T, N>), false);
#endif
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& value) {
  static_assert(sizeof(T) * N <= 16);
#if !defined(__CUDACC__)
  ::simt::check_access(to, sizeof(T) * N, alignof(Vec<T, N>), true);
#endif
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

// A struct of 8 or 16 bytes in one load.
template <class T>
__device__ __forceinline__ T load_struct(const T* from) {
  static_assert((sizeof(T) == 8 || sizeof(T) == 16) && alignof(T) == sizeof(T));
#if !defined(__CUDACC__)
  ::simt::check_access(from, sizeof(T), alignof(T), false);
#endif
  return *from;
}

// Whether vectors of N elements may be used on all of these, row by row.
template <class... P>
bool aligned_for(size_t nbytes, const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % nbytes == 0) && ...);
}

// --- reductions: fixed trees, so that results do not depend on timing ----------------------------------------------

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN wins, as in the CPU's kernels.
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
  __device__ __forceinline__ uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

// Every lane gets the result over the `Width` neighbouring lanes that it is part of.
template <int Width = kWarp, class T, class F>
__device__ __forceinline__ T warp_reduce(T v, F f) {
#pragma unroll
  for (int offset = Width / 2; offset > 0; offset /= 2) v = f(v, __shfl_xor_sync(kFullMask, v, offset));
  return v;
}
template <int Width = kWarp, class T>
__device__ __forceinline__ T warp_sum(T v) {
  return warp_reduce<Width>(v, Sum{});
}

// Every thread gets the result over the block. blockDim.x must be a multiple of 32 and at most 1024, and all of
// the block must call it. May be called repeatedly.
template <class T, class F>
__device__ __forceinline__ T block_reduce(T v, F f, T identity) {
  BNB_SHARED(T[kWarp], partial);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  v = warp_reduce(v, f);
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  v = warp_reduce(lane < warps ? partial[lane] : identity, f);
  __syncthreads();
  return v;
}
template <class T>
__device__ __forceinline__ T block_sum(T v) {
  return block_reduce(v, Sum{}, T{});
}

// The first report wins. `op` is a host string, carried and never read here.
__device__ __forceinline__ void report_out_of_range(Fault* fault, const char* op, int64_t value, int64_t limit) {
  if (atomicCAS(&fault->code, static_cast<int32_t>(FaultCode::none),
                static_cast<int32_t>(FaultCode::index_out_of_range)) != 0)
    return;
  fault->value = value;
  fault->limit = limit;
  fault->op = op;
}

}  // namespace bnb::cuda
