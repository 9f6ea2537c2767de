// Softmax and its logarithm over rows, and their gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp up to 1024 columns (512 of float32), a block above. Rows of
//           up to 16384 columns (8192) are read once and stay in registers; longer or unaligned ones are read twice,
//           with a running maximum.
// Numerics  float32; each thread adds its elements in order, then a fixed tree. The bits of a row depend on the
//           number of columns and the alignment alone.
// Needs     nothing; any size, also zero.
#include "cuda/rows.cuh"
#include "kernels/softmax.h"

namespace bnb::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) forward_held(SoftmaxArgs a) {
  using R = Row<T, true>;
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const R row(a.cols);
    typename R::Data x;
    row.load(static_cast<const T*>(a.x) + r * a.cols, x);
    float top = -HUGE_VALF, sum = 0, v[R::kSlots];
    row.each([&](int slot) { top = fmaxf(top, x[slot]); });
    top = team_max(top);
    row.each([&](int slot) {
      const float d = x[slot] - top, e = expf(d);
      v[slot] = a.log ? d : e;
      sum += e;
    });
    sum = team_sum(sum);
    const float log_sum = logf(sum), factor = 1.0f / sum;
    row.store(static_cast<T*>(a.y) + r * a.cols,
              [&](int slot) { return a.log ? v[slot] - log_sum : v[slot] * factor; });
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) forward_walk(SoftmaxArgs a) {
  using R = Row<T, false>;
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* row_of_x = static_cast<const T*>(a.x) + r * a.cols;
    R row(a.cols, row_of_x);
    typename R::Data x;
    Passes passes(row);
    const auto load = [&](int) { row.load(row_of_x, x); };
    TopAndSum stats;
    passes.run(load, [&](int) { stats.add([&](const auto& take) { row.each([&](int slot) { take(x[slot]); }); }); });
    stats.join();
    const float log_sum = logf(stats.sum), factor = 1.0f / stats.sum;
    passes.run(load, [&](int) {
      row.store(static_cast<T*>(a.y) + r * a.cols, [&](int slot) {
        const float d = x[slot] - stats.top;
        return a.log ? d - log_sum : expf(d) * factor;
      });
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) backward(SoftmaxBackwardArgs a) {
  using R = Row<T, Held>;
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* row_of_y = static_cast<const T*>(a.y) + r * a.cols;
    R row(a.cols, row_of_y);
    typename R::Data y, dy;
    Passes passes(row);
    const auto load = [&](int) {
      row.load(row_of_y, y);
      row.load(static_cast<const T*>(a.dy) + r * a.cols, dy);
    };
    float sum = 0;
    passes.run(load,
               [&](int) { row.each([&](int slot) { sum = a.log ? sum + dy[slot] : fmaf(y[slot], dy[slot], sum); }); });
    sum = team_sum(sum);
    passes.run(load, [&](int) {
      row.store(static_cast<T*>(a.dx) + r * a.cols,
                [&](int slot) { return a.log ? fmaf(-expf(y[slot]), sum, dy[slot]) : y[slot] * (dy[slot] - sum); });
    });
  }
}

}  // namespace

void softmax(const SoftmaxArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.x, a.y);
    launch(s, plan.held ? forward_held<T> : forward_walk<T>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void softmax_backward(const SoftmaxBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, a.y, a.dy, a.dx);
    launch(s, plan.held ? backward<T, true> : backward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0,
           a);
  });
}

}  // namespace bnb::cuda
