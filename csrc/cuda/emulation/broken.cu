// Kernels that are wrong on purpose, and right ones beside them: the proof that the emulator finds what it claims to
// (test/native/emulator.test.ts). Each reverses, sums or copies 64 values through shared memory.

#include "core/error.h"
#include "cuda/emulation/broken.h"
#include "cuda/ptx.cuh"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 64;

enum class Defect : int32_t {
  none,
  no_barrier,
  no_syncwarp,
  no_wait,
  no_barrier_after_wait,
  shared_out_of_bounds,
  divergent_barrier,
  divergent_shuffle,
  misaligned,
  global_out_of_bounds,
  global_out_of_bounds_by_one,
  host_memory,
  uninitialized,
  grid_too_large,
  trap
};

template <Defect D>
__global__ void reverse_kernel(float* y) {
  BNB_SHARED(float[kThreads], values);
  const int i = static_cast<int>(threadIdx.x);
  values[D == Defect::shared_out_of_bounds ? i + 1 : i] = static_cast<float>(i);
  if (D == Defect::divergent_barrier) {
    if (i < kThreads / 2) __syncthreads();
  } else if (D != Defect::no_barrier) {
    __syncthreads();
  }
  y[i] = values[D == Defect::divergent_barrier ? i : kThreads - 1 - i];
}

template <Defect D>
__global__ void warp_kernel(float* y) {
  BNB_SHARED(float[kThreads], values);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = static_cast<float>(i);
  if (D != Defect::no_syncwarp) __syncwarp();
  float v = values[i ^ 1];
  if (D == Defect::divergent_shuffle) {
    if (i % 2 == 0) v += __shfl_xor_sync(kFullMask, v, 2);
  }
  y[i] = v;
}

template <Defect D>
__global__ void copy_kernel(const float* x, float* y) {
  BNB_SHARED(float[kThreads], values);
  const int i = static_cast<int>(threadIdx.x);
  if (i < kThreads / 4) cp_async16(&values[i * 4], x + i * 4);
  cp_async_commit();
  if (D != Defect::no_wait) cp_async_wait<0>();
  if (D != Defect::no_barrier_after_wait) __syncthreads();
  y[i] = values[kThreads - 1 - i];
}

template <Defect D>
__global__ void memory_kernel(const float* x, float* y, const float* host) {
  BNB_SHARED(float[kThreads], values);
  const int i = static_cast<int>(threadIdx.x);
  if (D == Defect::misaligned) y[i] = load_vec<4>(x + 1).v[0];
  if (D == Defect::global_out_of_bounds) y[(1 << 20) + i] = 0;
  if (D == Defect::global_out_of_bounds_by_one) y[i + 1] = 0;
  if (D == Defect::host_memory) y[i] = *host;
  if (D == Defect::uninitialized) y[i] = values[i];
  if (D == Defect::trap) __trap();
}

}  // namespace

void launch_broken(CudaStream& s, int32_t which) {
  auto* x = static_cast<float*>(s.scratch(2 * kThreads * sizeof(float)));
  float* y = x + kThreads;
  for (int i = 0; i < kThreads; i++) x[i] = static_cast<float>(i);
  const dim3 one(1), threads(kThreads);
  const auto reverse = [&](auto kernel) { launch(s, kernel, one, threads, 0, y); };
  const auto copy = [&](auto kernel) { launch(s, kernel, one, threads, 0, x, y); };
  const float* host = new float(1);
  const auto memory = [&](auto kernel) { launch(s, kernel, one, threads, 0, x, y, host); };
  bool right = true;
  const auto check_reversed = [&] {
    for (int i = 0; i < kThreads; i++) right = right && y[i] == static_cast<float>(kThreads - 1 - i);
  };
  switch (static_cast<Defect>(which)) {
    case Defect::none:
      reverse(reverse_kernel<Defect::none>);
      check_reversed();
      copy(copy_kernel<Defect::none>);
      check_reversed();
      reverse(warp_kernel<Defect::none>);
      right = right && y[0] == 1 && y[1] == 0;
      if (!right) fail(Code::cuda, "provoke", "a correct kernel gave a wrong result");
      break;
    case Defect::no_barrier: reverse(reverse_kernel<Defect::no_barrier>); break;
    case Defect::no_syncwarp: reverse(warp_kernel<Defect::no_syncwarp>); break;
    case Defect::no_wait: copy(copy_kernel<Defect::no_wait>); break;
    case Defect::no_barrier_after_wait: copy(copy_kernel<Defect::no_barrier_after_wait>); break;
    case Defect::shared_out_of_bounds: reverse(reverse_kernel<Defect::shared_out_of_bounds>); break;
    case Defect::divergent_barrier: reverse(reverse_kernel<Defect::divergent_barrier>); break;
    case Defect::divergent_shuffle: reverse(warp_kernel<Defect::divergent_shuffle>); break;
    case Defect::misaligned: memory(memory_kernel<Defect::misaligned>); break;
    case Defect::global_out_of_bounds: memory(memory_kernel<Defect::global_out_of_bounds>); break;
    case Defect::global_out_of_bounds_by_one: memory(memory_kernel<Defect::global_out_of_bounds_by_one>); break;
    case Defect::host_memory: memory(memory_kernel<Defect::host_memory>); break;
    case Defect::uninitialized:
      memory(memory_kernel<Defect::uninitialized>);
      if (y[0] != y[0]) fail(Code::cuda, "provoke", "uninitialized shared memory gave NaN");
      break;
    case Defect::grid_too_large: launch(s, reverse_kernel<Defect::none>, dim3(1, 65536), threads, 0, y); break;
    case Defect::trap: memory(memory_kernel<Defect::trap>); break;
    default: fail(Code::argument, "provoke", "unknown defect ", which);
  }
  delete host;
}

}  // namespace bnb::cuda
