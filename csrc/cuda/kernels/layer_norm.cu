// y = (x - mean) * rstd * weight + bias per row, and its gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp up to 1024 columns (512 of float32), a block above. Rows of
//           up to 16384 columns (8192) are read once and stay in registers; longer or unaligned ones are read again for
//           each pass. Backward: about 512 threads per multiprocessor walk the rows and leave partial sums of dweight
//           and dbias, added in a second kernel.
// Numerics  float32; the variance is that of the centred values, exact to rounding also where the mean is large. Each
//           thread adds its elements in order, then a fixed tree. What belongs to a row depends on the number of
//           columns and the alignment alone, dweight and dbias also on the card.
// Needs     nothing; any size, also zero.
#include "cuda/column_sums.cuh"
#include "kernels/layer_norm.h"

namespace bnb::cuda {
namespace {

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) forward(LayerNormArgs a) {
  using R = Row<T, Held>;
  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  const float cols = static_cast<float>(a.cols);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* row_of_x = static_cast<const T*>(a.x) + r * a.cols;
    R row(a.cols, row_of_x);
    typename R::Data x, w, b;
    Passes passes(row);
    const auto load_weights = [&] {
      if (weight) row.load(weight, w);
      if (bias) row.load(bias, b);
    };
    const auto load = [&](int) {
      row.load(row_of_x, x);
      if (Held) load_weights();  // they arrive while the row is reduced
    };
    float sum = 0, squares = 0;
    passes.run(load, [&](int) { row.each([&](int slot) { sum += x[slot]; }); });
    const float mean = team_sum(sum) / cols;
    passes.run(load, [&](int) {
      row.each([&](int slot) {
        const float d = x[slot] - mean;
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
      row.store(static_cast<T*>(a.y) + r * a.cols, [&](int slot) {
        const float n = (x[slot] - mean) * rstd, scaled = weight ? n * w[slot] : n;
        return bias ? scaled + b[slot] : scaled;
      });
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1)
    backward(LayerNormBackwardArgs a, float* partials, ColumnSumPlan plan) {
  using R = Row<T, Held>;
  BNB_DYNAMIC_SHARED(shared);
  const ColumnSums<R, 2> sums(partials, plan.per_sum, plan.shared ? reinterpret_cast<float*>(shared) : nullptr);
  const T* weight = static_cast<const T*>(a.weight);
  const float cols = static_cast<float>(a.cols);
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    R row(a.cols);
    typename R::Data x, dy, w;
    Passes passes(row);
    const float mean = a.mean[r], rstd = a.rstd[r];
    const auto load = [&](int) {
      row.load(static_cast<const T*>(a.x) + r * a.cols, x);
      row.load(static_cast<const T*>(a.dy) + r * a.cols, dy);
      if (weight) row.load(weight, w);
    };
    const auto n = [&](int slot) { return (x[slot] - mean) * rstd; };
    const auto g = [&](int slot) { return weight ? dy[slot] * w[slot] : dy[slot]; };
    float mean_g = 0, mean_gn = 0;
    passes.run(load, [&](int chunk) {
      row.each([&](int slot) {
        mean_g += g(slot);
        mean_gn = fmaf(g(slot), n(slot), mean_gn);
      });
      if (sums.wanted()) {
        sums.update(0, row, chunk, [&](int slot, float sum) { return fmaf(dy[slot], n(slot), sum); });
        sums.update(1, row, chunk, [&](int slot, float sum) { return sum + dy[slot]; });
      }
    });
    team_sum_pair(mean_g, mean_gn);
    mean_g /= cols;
    mean_gn /= cols;
    passes.run(load, [&](int) {
      row.store(static_cast<T*>(a.dx) + r * a.cols,
                [&](int slot) { return rstd * (g(slot) - mean_g - n(slot) * mean_gn); });
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
  const ColumnSumPlan plan = plan_column_sums<Row<T, Held>>(s, a.rows, a.cols, 2, block);
  float* partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.blocks * 2 * plan.per_sum) * sizeof(float)));
  launch(s, backward<T, Held>, dim3(static_cast<unsigned>(plan.blocks)), block, plan.shared, a, partials, plan);
  launch(s, add_partials<T, Row<T, Held>>, dim3(static_cast<unsigned>(plan.per_sum / kWarp), 2),
         dim3(kWarp, kPartialGroups), 0, partials, plan, static_cast<int>(block.x), a.cols, static_cast<T*>(a.dweight),
         static_cast<T*>(a.dbias));
}

}  // namespace

void layer_norm(const LayerNormArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.x, a.weight, a.bias, a.y);
    launch(s, plan.held ? forward<T, true> : forward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void layer_norm_backward(const LayerNormBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.x, a.dy, a.weight, a.dx);
    plan.held ? launch_backward<T, true>(a, s, plan.block) : launch_backward<T, false>(a, s, plan.block);
  });
}

}  // namespace bnb::cuda
