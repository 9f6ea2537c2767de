// The ways to multiply with a 4-bit weight on a GPU; dispatch.cc chooses.
#pragma once
#include "cuda/stream.h"
#include "kernels/linear_4bit.h"
#include "kernels/plan/linear_4bit.h"
#include "kernels/plan/linear_4bit_group.h"

namespace bnb::cuda {

static_assert(kLinear4BitCounters <= kCounters);

// Whether the kernels' vectors fit: Linear4BitProblem::aligned.
inline bool is_aligned(const void* x, const Weight4Bit& w) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(w.packed) % 8 == 0;
}

// A repair runs only if a scale of w is too large for float16 (repair.cuh): `flags` says so, null for always.
void linear_4bit_simt(const Linear4BitArgs& a, const int32_t* flags, CudaStream& s);
void linear_4bit_small_m(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);
void linear_4bit_group_small_m(const Linear4BitGroupArgs& a, const Linear4BitGroupPlan& plan, CudaStream& s);
void linear_4bit_tile(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);
void linear_4bit_dense(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);

void linear_4bit_backward_simt(const Linear4BitBackwardArgs& a, const int32_t* flags, CudaStream& s);
void linear_4bit_backward_small_m(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);
void linear_4bit_backward_tile(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);
void linear_4bit_backward_dense(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s);

// flags[i] = whether a scale of w lies beyond the largest float16, for the scales that block i looked at. The repair
// of a kernel that rounds table * scale to float16.
constexpr int kScaleFlags = 64;
void check_scales(const Weight4Bit& w, int64_t weights, int32_t* flags, CudaStream& s);

}  // namespace bnb::cuda
