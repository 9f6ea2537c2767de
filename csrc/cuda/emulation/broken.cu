// Kernels that are wrong on purpose, and right ones beside them: the proof that the emulator finds what it claims to
// (test/native/emulator.test.ts). Each reverses or copies 64 values through shared memory, or sums what blocks leave.

#include "core/error.h"
#include "cuda/emulation/broken.h"
#include "cuda/ptx.cuh"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 64;
constexpr int kBlocks = 512, kLaunches = 64;

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
  relies_on_block_order,
  plain_counter,
  counts_too_early,
  waits_for_blocks,
  bank_conflicts,  // no defect, but slow
  trap,
  too_much_shared,
  shared_not_allowed
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

// 4 KB of static shared memory beside what the launch asks for.
__global__ void shared_kernel(float* y) {
  BNB_SHARED(float[1024], values);
  BNB_DYNAMIC_SHARED(more);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = 1;
  more[i] = 1;
  y[i] = values[i];
}

// sums[b + 1] = sums[b] + 1, which another block writes.
__global__ void chain_kernel(float* sums) {
  if (threadIdx.x == 0) sums[blockIdx.x + 1] = sums[blockIdx.x] + 1;
}

// sums[0] = 0 + 1 + ... over the blocks, added up by the last one to arrive.
template <Defect D>
__global__ void sum_kernel(float* sums, int32_t* counter) {
  if (threadIdx.x != 0) return;
  const int blocks = static_cast<int>(gridDim.x), b = static_cast<int>(blockIdx.x);
  if (D != Defect::counts_too_early) sums[1 + b] = static_cast<float>(b);
  __threadfence();
  const int before = D == Defect::plain_counter ? (*counter)++ : atomicAdd(counter, 1);
  if (D == Defect::counts_too_early) sums[1 + b] = static_cast<float>(b);
  if (D == Defect::waits_for_blocks) {
    while (atomicAdd(counter, 0) < blocks) continue;
  }
  if (before != blocks - 1) return;
  *counter = 0;
  __threadfence();
  float sum = 0;
  for (int i = 0; i < blocks; i++) sum += sums[1 + i];
  sums[0] = sum;
}

// Accesses of one warp whose wavefronts are known: test/native/bank-conflicts.test.ts has them in this order.
__global__ void bank_kernel(float* y) {
  BNB_SHARED(float[32 * 33 + 4], values);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 32 * 33; i += kWarp) values[i] = 1;
  __syncthreads();
  float sum = values[lane * 32];
  sum += values[lane * 33];
  sum += values[lane * 2];
  sum += values[lane / 8];
  sum += load_vec<2>(values + lane * 2).v[0];
  sum += load_vec<2>(values + lane % 4 * 32).v[0];
  sum += load_vec<4>(values + lane * 4).v[0];
  sum += load_vec<4>(values + lane * 8).v[0];
  y[lane] = sum;
}

}  // namespace

void launch_broken(CudaStream& s, int32_t which) {
  auto* x = static_cast<float*>(s.scratch((kThreads + kBlocks + 1) * sizeof(float)));
  float* y = x + kThreads;
  for (int i = 0; i < kThreads; i++) x[i] = static_cast<float>(i);
  const dim3 one(1), threads(kThreads);
  const auto reverse = [&](auto kernel) { launch(s, kernel, one, threads, 0, y); };
  const auto copy = [&](auto kernel) { launch(s, kernel, one, threads, 0, x, y); };
  const float* host = new float(1);
  const auto memory = [&](auto kernel) { launch(s, kernel, one, threads, 0, x, y, host); };
  bool right = true;
  const auto add_up = [&](auto kernel) {
    for (int i = 0; i < kLaunches; i++) {
      y[0] = 0;
      launch(s, kernel, dim3(kBlocks), dim3(kWarp), 0, y, s.counters);
      s.counters[0] = 0;
      right = right && y[0] == static_cast<float>(kBlocks * (kBlocks - 1) / 2);
      std::fill(y, y + kBlocks + 1, NAN);
    }
  };
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
      add_up(sum_kernel<Defect::none>);
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
    case Defect::global_out_of_bounds_by_one:
      y += kBlocks + 1 - kThreads;  // which ends where the scratch memory does
      memory(memory_kernel<Defect::global_out_of_bounds_by_one>);
      break;
    case Defect::host_memory: memory(memory_kernel<Defect::host_memory>); break;
    case Defect::uninitialized:
      memory(memory_kernel<Defect::uninitialized>);
      if (y[0] != y[0]) fail(Code::cuda, "provoke", "uninitialized shared memory gave NaN");
      break;
    case Defect::grid_too_large: launch(s, reverse_kernel<Defect::none>, dim3(1, 65536), threads, 0, y); break;
    case Defect::relies_on_block_order:
      y[0] = 0;
      launch(s, chain_kernel, dim3(kBlocks), dim3(kWarp), 0, y);
      right = y[kBlocks] == kBlocks;
      break;
    case Defect::plain_counter: add_up(sum_kernel<Defect::plain_counter>); break;
    case Defect::counts_too_early: add_up(sum_kernel<Defect::counts_too_early>); break;
    case Defect::waits_for_blocks: add_up(sum_kernel<Defect::waits_for_blocks>); break;
    case Defect::bank_conflicts: launch(s, bank_kernel, one, dim3(kWarp), 0, y); break;
    case Defect::too_much_shared:
      launch(s, shared_kernel, one, threads, static_cast<size_t>(s.gpu.shared_per_block) - 4095, y);
      break;
    case Defect::shared_not_allowed:
      launch_emulated(s, nullptr, one, threads, 45 << 10, [y] { shared_kernel(y); });
      break;
    case Defect::trap: memory(memory_kernel<Defect::trap>); break;
    default: fail(Code::argument, "provoke", "unknown defect ", which);
  }
  delete host;
  if (!right) fail(Code::cuda, "provoke", "the kernel gave a wrong result");
}

}  // namespace bnb::cuda
