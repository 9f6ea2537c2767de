// Softmax and its logarithm over rows, and their gradients.
//
// Layout    rows are contiguous; any number of columns and any alignment.
// Work      a team of threads per row (rows.cuh): a warp for short rows, a block for others. Rows of up to 16384
//           columns (8192 backward) are read once and stay in registers; longer or unaligned ones are read twice, with
//           a running maximum.
// Numerics  float32; each thread adds its elements in order, then a fixed tree. The bits of a row depend on the
//           number of columns and the alignment alone.
// Needs     nothing; any size, also zero.
#include "kernels/softmax.h"

#include "cuda/rows.cuh"

namespace bnb::cuda {
namespace {

constexpr int kHeld = 32, kHeldBackward = 16;  // elements of each array in a thread's registers

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) forward_held(SoftmaxArgs a) {
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const Row<T, kHeld, true> row(a.cols);
    float v[row.kSlots];
    row.load(static_cast<const T*>(a.x) + r * a.cols, v);
    float top = -HUGE_VALF;
    row.each([&](int slot) { top = fmaxf(top, v[slot]); });
    top = team_max(top);
    float sum = 0;
    row.each([&](int slot) {
      const float d = v[slot] - top, e = expf(d);
      v[slot] = a.log ? d : e;
      sum += e;
    });
    sum = team_sum(sum);
    const float log_sum = logf(sum), factor = 1.0f / sum;
    row.each([&](int slot) { v[slot] = a.log ? v[slot] - log_sum : v[slot] * factor; });
    row.store(static_cast<T*>(a.y) + r * a.cols, v);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) forward_walk(SoftmaxArgs a) {
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T* x = static_cast<const T*>(a.x) + r * a.cols;
    Row<T, kWalked<T>, false> row(a.cols, x);
    float v[row.kSlots];
    Passes passes(row);
    const auto load = [&](int) { row.load(x, v); };
    TopAndSum stats;
    passes.run(load, [&](int) { stats.add(row, v); });
    stats.join();
    const float log_sum = logf(stats.sum), factor = 1.0f / stats.sum;
    passes.run(load, [&](int) {
      row.each([&](int slot) {
        const float d = v[slot] - stats.top;
        v[slot] = a.log ? d - log_sum : expf(d) * factor;
      });
      row.store(static_cast<T*>(a.y) + r * a.cols, v);
    });
  }
}

template <class T, bool Held>
__global__ void __launch_bounds__(kRowThreads, 1) backward(SoftmaxBackwardArgs a) {
  for (int64_t r = first_row(); r < a.rows; r += row_step()) {
    const T *y = static_cast<const T*>(a.y) + r * a.cols, *dy = static_cast<const T*>(a.dy) + r * a.cols;
    Row<T, Held ? kHeldBackward : kWalked<T>, Held> row(a.cols, y);
    float v[row.kSlots], g[row.kSlots];
    Passes passes(row);
    const auto load = [&](int) {
      row.load(y, v);
      row.load(dy, g);
    };
    float sum = 0;
    passes.run(load, [&](int) {
      row.each([&](int slot) { sum = a.log ? sum + g[slot] : fmaf(v[slot], g[slot], sum); });
    });
    sum = team_sum(sum);
    passes.run(load, [&](int) {
      row.each([&](int slot) { g[slot] = a.log ? fmaf(-expf(v[slot]), sum, g[slot]) : v[slot] * (g[slot] - sum); });
      row.store(static_cast<T*>(a.dx) + r * a.cols, g);
    });
  }
}

}  // namespace

void softmax(const SoftmaxArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeld, a.x, a.y);
    launch(s, plan.held ? forward_held<T> : forward_walk<T>, stride_grid(s, a.rows, plan.block.y), plan.block, 0, a);
  });
}

void softmax_backward(const SoftmaxBackwardArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.cols, kHeldBackward, a.y, a.dy, a.dx);
    launch(s, plan.held ? backward<T, true> : backward<T, false>, stride_grid(s, a.rows, plan.block.y), plan.block, 0,
           a);
  });
}

}  // namespace bnb::cuda
