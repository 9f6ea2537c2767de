// y = x * rstd * weight per row, and its gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp up to 1024 columns (512 of float32), a block above. Rows of
//           up to 16384 columns (8192) are read once and stay in registers; longer or unaligned ones are read twice.
//           Backward: about 512 threads per multiprocessor walk the rows and leave partial sums of dweight, added in a
//           second kernel.
// Numerics  float32; each thread adds its elements in order, then a fixed tree. rstd, y and dx of a row depend on the
//           number of columns and the alignment alone, dweight also on the card.
// Needs     nothing; any size, also zero.
#include "cuda/column_sums.cuh"
#include "kernels/rms_norm.h"

namespace bnb::cuda {
namespace {

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) forward(RmsNormArgs a) {
  using R = Row<T, Held>;
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* row_of_x = static_cast<const T*>(a.x) + r * a.cols;
    R row(a.cols, row_of_x);
    typename R::Data x, w;
    Passes passes(row);
    const auto load_weight = [&] { row.load(static_cast<const T*>(a.weight), w); };
    const auto load = [&](int) {
      row.load(row_of_x, x);
      if (Held) load_weight();  // arrives while the row is reduced
    };
    float squares = 0;
    passes.run(load, [&](int) { row.each([&](int slot) { squares = fmaf(x[slot], x[slot], squares); }); });
    const float rstd = 1.0f / sqrtf(team_sum(squares) / static_cast<float>(a.cols) + a.eps);
    if (threadIdx.x == 0) a.rstd[r] = rstd;
    passes.run(load, [&](int) {
      if (!Held) load_weight();
      row.store(static_cast<T*>(a.y) + r * a.cols, [&](int slot) { return x[slot] * rstd * w[slot]; });
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) backward(RmsNormBackwardArgs a, float* partials, ColumnSumPlan plan) {
  using R = Row<T, Held>;
  BNB_DYNAMIC_SHARED(shared);
  const ColumnSums<R, 1> sums(partials, plan.per_sum, plan.shared ? reinterpret_cast<float*>(shared) : nullptr);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    R row(a.cols);
    typename R::Data x, dy, w;
    Passes passes(row);
    const float rstd = a.rstd[r];
    const auto load = [&](int) {
      row.load(static_cast<const T*>(a.x) + r * a.cols, x);
      row.load(static_cast<const T*>(a.dy) + r * a.cols, dy);
      row.load(static_cast<const T*>(a.weight), w);
    };
    float dot = 0;
    passes.run(load, [&](int chunk) {
      row.each([&](int slot) { dot = fmaf(dy[slot] * w[slot], x[slot] * rstd, dot); });
      if (sums.wanted()) {
        sums.update(0, row, chunk, [&](int slot, float sum) { return fmaf(dy[slot], x[slot] * rstd, sum); });
      }
    });
    const float mean = team_sum(dot) / static_cast<float>(a.cols);
    passes.run(load, [&](int) {
      row.store(static_cast<T*>(a.dx) + r * a.cols,
                [&](int slot) { return rstd * (dy[slot] * w[slot] - x[slot] * rstd * mean); });
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
  const ColumnSumPlan plan = plan_column_sums<Row<T, Held>>(s, a.rows, a.cols, 1, block);
  float* partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.blocks * plan.per_sum) * sizeof(float)));
  launch(s, backward<T, Held>, dim3(static_cast<unsigned>(plan.blocks)), block, plan.shared, a, partials, plan);
  launch(s, add_partials<T, Row<T, Held>>, dim3(static_cast<unsigned>(plan.per_sum / kWarp)),
         dim3(kWarp, kPartialGroups), 0, partials, plan, static_cast<int>(block.x), a.cols, static_cast<T*>(a.dweight),
         nullptr);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.x, a.weight, a.y);
    launch(s, plan.held ? forward<T, true> : forward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void rms_norm_backward(const RmsNormBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.x, a.dy, a.weight, a.dx);
    plan.held ? launch_backward<T, true>(a, s, plan.block) : launch_backward<T, false>(a, s, plan.block);
  });
}

}  // namespace bnb::cuda
