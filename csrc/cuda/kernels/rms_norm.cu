// y = x * rstd * weight per row, and its gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp for short rows, a block for others. Rows of up to 8192
//           columns are read once and stay in registers; longer or unaligned ones are read twice. Backward: about 512
//           threads per multiprocessor walk the rows and leave partial sums of dweight, added in a second kernel.
// Numerics  float32; each thread adds its elements in order, then a fixed tree. rstd, y and dx of a row depend on the
//           number of columns and the alignment alone, dweight also on the card.
// Needs     nothing; any size, also zero.
#include "kernels/rms_norm.h"

#include "cuda/column_sums.cuh"

namespace bnb::cuda {
namespace {

constexpr int kHeld = 16;  // elements of each array in a thread's registers

template <class T, bool Held>
using RowOf = Row<T, Held ? kHeld : kWalked<T>, Held>;

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) forward(RmsNormArgs a) {
  const T* const weight = static_cast<const T*>(a.weight);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* x = static_cast<const T*>(a.x) + r * a.cols;
    RowOf<T, Held> row(a.cols, x);
    float v[row.kSlots], w[row.kSlots];
    Passes passes(row);
    const auto load = [&](int) {
      row.load(x, v);
      if (Held) row.load(weight, w);  // arrives while the row is reduced
    };
    float squares = 0;
    passes.run(load, [&](int) { row.each([&](int slot) { squares = fmaf(v[slot], v[slot], squares); }); });
    const float rstd = 1.0f / sqrtf(team_sum(squares) / static_cast<float>(a.cols) + a.eps);
    if (threadIdx.x == 0) a.rstd[r] = rstd;
    passes.run(load, [&](int) {
      if (!Held) row.load(weight, w);
      row.each([&](int slot) { v[slot] = v[slot] * rstd * w[slot]; });
      row.store(static_cast<T*>(a.y) + r * a.cols, v);
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) backward(RmsNormBackwardArgs a, float* partials, ColumnSumPlan plan) {
  BNB_DYNAMIC_SHARED(shared);
  const ColumnSums<RowOf<T, Held>, 1> sums(partials, plan.per_sum,
                                           plan.shared ? reinterpret_cast<float*>(shared) : nullptr);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    RowOf<T, Held> row(a.cols);
    float n[row.kSlots], g[row.kSlots];
    Passes passes(row);
    const float rstd = a.rstd[r];
    // n = x * rstd, g = dy * weight; the first time round, dweight += dy * n.
    bool adds = sums.wanted();
    const auto load = [&](int chunk) {
      float w[row.kSlots];
      row.load(static_cast<const T*>(a.x) + r * a.cols, n);
      row.load(static_cast<const T*>(a.dy) + r * a.cols, g);
      row.load(static_cast<const T*>(a.weight), w);
      row.each([&](int slot) { n[slot] *= rstd; });
      if (adds) sums.update(0, row, chunk, [&](int slot, float sum) { return fmaf(g[slot], n[slot], sum); });
      row.each([&](int slot) { g[slot] *= w[slot]; });
    };
    float dot = 0;
    passes.run(load, [&](int) { row.each([&](int slot) { dot = fmaf(g[slot], n[slot], dot); }); });
    const float mean = team_sum(dot) / static_cast<float>(a.cols);
    adds = false;
    passes.run(load, [&](int) {
      row.each([&](int slot) { g[slot] = rstd * (g[slot] - n[slot] * mean); });
      row.store(static_cast<T*>(a.dx) + r * a.cols, g);
    });
  }
  sums.finish();
}

template <class T, bool Held>
void launch_backward(const RmsNormBackwardArgs& a, CudaStream& s, dim3 block) {
  if (!a.dweight) {
    launch(s, backward<T, Held>, stride_grid(s, a.rows, block.y), block, 0, a, nullptr, ColumnSumPlan{});
    return;
  }
  const ColumnSumPlan plan = plan_column_sums<RowOf<T, Held>>(s, a.rows, a.cols, 1, block);
  float* partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.blocks * plan.per_sum) * sizeof(float)));
  launch(s, backward<T, Held>, dim3(static_cast<unsigned>(plan.blocks)), block, plan.shared, a, partials, plan);
  launch(s, add_partials<T, RowOf<T, Held>>, dim3(static_cast<unsigned>(plan.per_sum / kWarp)),
         dim3(kWarp, kPartialGroups), 0, partials, plan, static_cast<int>(block.x), a.cols, static_cast<T*>(a.dweight),
         nullptr);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeld, a.x, a.weight, a.y);
    launch(s, plan.held ? forward<T, true> : forward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeld, a.x, a.dy, a.weight, a.dx);
    plan.held ? launch_backward<T, true>(a, s, plan.block) : launch_backward<T, false>(a, s, plan.block);
  });
}

}  // namespace bnb::cuda
