// Multiply-adds on registers alone: what a product in float32 is measured against.
//
// Layout    result[0] the number of multiply-adds, result[1] a sum that keeps them alive.
// Work      2048 threads per multiprocessor, four independent chains each: more than the latency of a multiply-add.
// Numerics  every chain tends to 1.
// Needs     nothing.
#include "cuda/kernel.cuh"
#include "kernels/matmul.h"
#include "kernels/plan/residency.h"

namespace bnb::cuda {
namespace {

constexpr int kThreads = 256, kRegisters = 32, kSteps = 16;

__global__ void __launch_bounds__(kThreads) fma_peak_kernel(double* result, int64_t iterations) {
  const float factor = 0.999f, term = 0.001f;
  float a = static_cast<float>(threadIdx.x), b = a + 1.0f, c = a + 2.0f, d = a + 3.0f;
  for (int64_t i = 0; i < iterations; i++) {
#pragma unroll
    for (int j = 0; j < kSteps; j++) {
      a = fmaf(a, factor, term);
      b = fmaf(b, factor, term);
      c = fmaf(c, factor, term);
      d = fmaf(d, factor, term);
    }
  }
  const double alive = static_cast<double>((a + b) + (c + d));
  if (global_thread() == 0) {
    result[0] = static_cast<double>(global_threads()) * static_cast<double>(iterations) * (4 * kSteps);
    result[1] = alive;
  } else if (alive < 0) {
    result[1] = alive;  // never: the chains stay positive
  }
}

}  // namespace

void fma_peak(const FmaPeakArgs& a, CudaStream& s) {
  const int blocks = s.gpu.sms * resident_blocks(s.gpu, kThreads, kRegisters, 0);
  launch(s, fma_peak_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, a.result, a.iterations);
}

}  // namespace bnb::cuda
