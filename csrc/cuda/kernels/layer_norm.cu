// y = (x - mean) * rstd * weight + bias per row, and its gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp for short rows, a block for others. Rows of up to 8192
//           columns are read once and stay in registers; longer or unaligned ones are read again for each pass.
//           Backward: about 512 threads per multiprocessor walk the rows and leave partial sums of dweight and dbias,
//           added in a second kernel.
// Numerics  float32; the variance is that of the centred values, exact to rounding also where the mean is large. Each
//           thread adds its elements in order, then a fixed tree. What belongs to a row depends on the number of
//           columns and the alignment alone, dweight and dbias also on the card.
// Needs     nothing; any size, also zero.
#include "kernels/layer_norm.h"

#include "cuda/column_sums.cuh"

namespace bnb::cuda {
namespace {

constexpr int kHeld = 16;  // elements of each array in a thread's registers

template <class T, bool Held>
using RowOf = Row<T, Held ? kHeld : kWalked<T>, Held>;

// The current chunk of a row of weights, or `otherwise`.
template <class R>
__device__ __forceinline__ void load_or(const R& row, const void* p, float otherwise, float (&v)[R::kSlots]) {
  if (p) {
    row.load(static_cast<const typename R::Element*>(p), v);
  } else {
    row.each([&](int slot) { v[slot] = otherwise; });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) forward(LayerNormArgs a) {
  const float cols = static_cast<float>(a.cols);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* x = static_cast<const T*>(a.x) + r * a.cols;
    RowOf<T, Held> row(a.cols, x);
    float v[row.kSlots], w[row.kSlots], b[row.kSlots];
    Passes passes(row);
    const auto load_weights = [&] {
      load_or(row, a.weight, 1.0f, w);
      load_or(row, a.bias, 0.0f, b);
    };
    const auto load = [&](int) {
      row.load(x, v);
      if (Held) load_weights();  // they arrive while the row is reduced
    };
    float sum = 0, squares = 0;
    passes.run(load, [&](int) { row.each([&](int slot) { sum += v[slot]; }); });
    const float mean = team_sum(sum) / cols;
    passes.run(load, [&](int) {
      row.each([&](int slot) {
        const float d = v[slot] - mean;
        squares = fmaf(d, d, squares);
      });
    });
    const float rstd = 1.0f / sqrtf(team_sum(squares) / cols + a.eps);
    if (threadIdx.x == 0) {
      a.mean[r] = mean;
      a.rstd[r] = rstd;
    }
    passes.run(load, [&](int) {
      if (!Held) load_weights();
      row.each([&](int slot) { v[slot] = (v[slot] - mean) * rstd * w[slot] + b[slot]; });
      row.store(static_cast<T*>(a.y) + r * a.cols, v);
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) backward(LayerNormBackwardArgs a, float* partials, ColumnSumPlan plan) {
  BNB_DYNAMIC_SHARED(shared);
  const ColumnSums<RowOf<T, Held>, 2> sums(partials, plan.per_sum,
                                           plan.shared ? reinterpret_cast<float*>(shared) : nullptr);
  const float cols = static_cast<float>(a.cols);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    RowOf<T, Held> row(a.cols);
    float n[row.kSlots], g[row.kSlots];
    Passes passes(row);
    const float mean = a.mean[r], rstd = a.rstd[r];
    // n = (x - mean) * rstd, g = dy * weight; the first time round, dweight += dy * n and dbias += dy.
    bool adds = sums.wanted();
    const auto load = [&](int chunk) {
      float w[row.kSlots];
      row.load(static_cast<const T*>(a.x) + r * a.cols, n);
      row.load(static_cast<const T*>(a.dy) + r * a.cols, g);
      load_or(row, a.weight, 1.0f, w);
      row.each([&](int slot) { n[slot] = (n[slot] - mean) * rstd; });
      if (adds) {
        sums.update(0, row, chunk, [&](int slot, float sum) { return fmaf(g[slot], n[slot], sum); });
        sums.update(1, row, chunk, [&](int slot, float sum) { return sum + g[slot]; });
      }
      row.each([&](int slot) { g[slot] *= w[slot]; });
    };
    float mean_g = 0, mean_gn = 0;
    passes.run(load, [&](int) {
      row.each([&](int slot) {
        mean_g += g[slot];
        mean_gn = fmaf(g[slot], n[slot], mean_gn);
      });
    });
    team_sum_pair(mean_g, mean_gn);
    mean_g /= cols;
    mean_gn /= cols;
    adds = false;
    passes.run(load, [&](int) {
      row.each([&](int slot) { g[slot] = rstd * (g[slot] - mean_g - n[slot] * mean_gn); });
      row.store(static_cast<T*>(a.dx) + r * a.cols, g);
    });
  }
  sums.finish();
}

template <class T, bool Held>
void launch_backward(const LayerNormBackwardArgs& a, CudaStream& s, dim3 block) {
  if (!a.dweight && !a.dbias) {
    launch(s, backward<T, Held>, stride_grid(s, a.rows, block.y), block, 0, a, nullptr, ColumnSumPlan{});
    return;
  }
  const ColumnSumPlan plan = plan_column_sums<RowOf<T, Held>>(s, a.rows, a.cols, 2, block);
  float* partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.blocks * 2 * plan.per_sum) * sizeof(float)));
  launch(s, backward<T, Held>, dim3(static_cast<unsigned>(plan.blocks)), block, plan.shared, a, partials, plan);
  launch(s, add_partials<T, RowOf<T, Held>>, dim3(static_cast<unsigned>(plan.per_sum / kWarp), 2),
         dim3(kWarp, kPartialGroups), 0, partials, plan, static_cast<int>(block.x), a.cols, static_cast<T*>(a.dweight),
         static_cast<T*>(a.dbias));
}

}  // namespace

void layer_norm(const LayerNormArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeld, a.x, a.weight, a.bias, a.y);
    launch(s, plan.held ? forward<T, true> : forward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void layer_norm_backward(const LayerNormBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeld, a.x, a.dy, a.weight, a.dx);
    plan.held ? launch_backward<T, true>(a, s, plan.block) : launch_backward<T, false>(a, s, plan.block);
  });
}

}  // namespace bnb::cuda
