// Sums over the rows of a matrix, one per column: the gradients of a weight and a bias beside that of the rows.
//
// Each team adds up the rows that it walks, every thread its own elements in its own floats of shared memory (or of
// scratch where that is too small), so nothing is synchronized until the end. A block leaves one partial sum per
// column, and a second kernel adds those of all blocks in a fixed order.
#pragma once
#include "cuda/rows.cuh"
#include "kernels/plan/residency.h"

namespace bnb::cuda {

// What is in scratch: [blocks, sums, chunks, slots * threads], slots in fours that lie together (Row::element_at);
// there is a float also for slots that hold no element. per_sum = chunks * slots * threads.
struct ColumnSumPlan {
  int64_t per_sum = 0, blocks = 0;
  size_t shared = 0;  // bytes; 0 where each team adds in scratch
};

// R is the Row that teams walk, with 16-byte boundaries at the beginning of a row.
template <class R>
ColumnSumPlan plan_column_sums(const CudaStream& s, int64_t rows, int64_t cols, int sums, dim3 block) {
  ColumnSumPlan plan;
  plan.per_sum = int64_t{R::chunks_of(cols, block.x)} * R::kSlots * block.x;
  plan.shared = static_cast<size_t>(plan.per_sum * sums * block.y) * sizeof(float);
  // Some of the block's shared memory is taken by its reductions.
  if (plan.shared + 1024 > static_cast<size_t>(s.gpu.shared_per_block) && block.y == 1) plan.shared = 0;
  // Enough blocks for 512 threads on each multiprocessor, if it can hold them; but at least four rows for each team.
  const int threads = static_cast<int>(block.x * block.y), wanted = 512 / threads;
  const int held = resident_blocks(s.gpu, threads, 128, static_cast<int64_t>(plan.shared) + 1024);
  const int64_t most = int64_t{s.gpu.sms} * (wanted < held ? wanted : held),
                useful = ceil_div(rows, int64_t{4} * block.y);
  plan.blocks = useful < most ? useful : most;
  // Without rows one block leaves zeros.
  if (plan.blocks == 0) plan.blocks = 1;
  return plan;
}

template <class R, int Sums>
class ColumnSums {
 public:
  // All threads of the block. `partials` null: no sums are wanted, and nothing may be called but wanted() and finish().
  __device__ __forceinline__ ColumnSums(float* partials, int64_t per_sum, float* shared)
      : partials_(partials ? partials + int64_t{blockIdx.x} * Sums * per_sum : nullptr),
        mine_(shared ? shared + int64_t{threadIdx.y} * Sums * per_sum : partials_),
        per_sum_(per_sum) {
    if (!partials_) return;
    for (int64_t i = threadIdx.x; i < Sums * per_sum; i += blockDim.x) mine_[i] = 0;
    __syncthreads();  // a thread adds to other floats than it has cleared
  }

  __device__ __forceinline__ bool wanted() const { return partials_ != nullptr; }

  // Sum `which` of the elements in the current chunk: sum <- f(slot, sum).
  template <class F>
  __device__ __forceinline__ void update(int which, const R& row, int chunk, const F& f) const {
    float* const sums = mine_ + which * per_sum_ + int64_t{chunk} * R::kSlots * blockDim.x;
    row.each_vector([&](int r) {
#pragma unroll
      for (int slot = r * R::kVec; slot < (r + 1) * R::kVec; slot += 4) {
        float* const at = sums + (slot / 4 * blockDim.x + threadIdx.x) * 4;
        Vec<float, 4> four = load_vec<4>(at);
#pragma unroll
        for (int j = 0; j < 4; j++) four.v[j] = f(slot + j, four.v[j]);
        store_vec(at, four);
      }
    });
    row.odd_one([&](int slot) {
      float& sum = sums[slot * blockDim.x + threadIdx.x];
      sum = f(slot, sum);
    });
  }

  // All threads of the block.
  __device__ __forceinline__ void finish() const {
    if (!partials_ || mine_ == partials_) return;
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int64_t i = threadIdx.x; i < Sums * per_sum_; i += blockDim.x) {
      float sum = mine_[i];
      for (int team = 1; team < static_cast<int>(blockDim.y); team++) sum += mine_[team * Sums * per_sum_ + i];
      partials_[i] = sum;
    }
  }

 private:
  float *partials_, *mine_;
  int64_t per_sum_;
};

constexpr int kPartialGroups = 16;

// to0[cols], to1[cols] = the sums over the blocks; `size` threads were in a team. Block (32, kPartialGroups), the sum
// in blockIdx.y.
template <class T, class R>
__global__ void __launch_bounds__(kWarp* kPartialGroups)
    add_partials(const float* partials, ColumnSumPlan plan, int size, int64_t cols, T* to0, T* to1) {
  BNB_SHARED(float[kPartialGroups][kWarp], group);
  T* const to = blockIdx.y == 0 ? to0 : to1;
  const int64_t at = int64_t{blockIdx.x} * kWarp + threadIdx.x;  // per_sum is a multiple of 32
  float sum = 0;
#pragma unroll 4
  for (int64_t b = threadIdx.y; b < plan.blocks; b += kPartialGroups) {
    sum += partials[(b * gridDim.y + blockIdx.y) * plan.per_sum + at];
  }
  group[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || !to) return;
  for (int g = 1; g < kPartialGroups; g++) sum += group[g][threadIdx.x];
  const int64_t col = R::element_at(cols, size, at);
  if (col >= 0) to[col] = narrow<T>(sum);
}

}  // namespace bnb::cuda
