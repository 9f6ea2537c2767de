// A mixture of experts, each a gated MLP, and its gradients for x and for the shares.
//
// Layout    everything between x and y is float32 and by pairs (row, choice), in their own order; the sorted list of
//           them says only who computes what. Pieces of rows have scratch memory: [pairs, width] and [pairs, hidden].
// Work      A warp an expert sorts the pairs; a product takes a warp per output and up to eight pairs of an expert,
//           its gradient a block per 64 columns; sums over a row's choices take a thread an element. The number of
//           launches does not depend on the number of experts.
// Numerics  weights are fl(table * scale), one fmaf per product, lanes and warps added in a fixed tree; experts are
//           added in the order of the choices, so a row's bits do not depend on the others. One rounding.
// Needs     nothing; experts outside the table are reported and count zero.
#include "cuda/kernels/experts_swiglu/groups.cuh"
#include "cuda/kernels/experts_swiglu/matrix.cuh"
#include "cuda/map.cuh"
#include "cuda/math.cuh"
#include "kernels/cast.h"
#include "kernels/swiglu.h"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kColumns = 64;  // of dx, of a block
// Floats of scratch memory of a piece of rows, unless one row takes more.
constexpr int64_t kScratch = int64_t{1} << 25;

// A warp per expert counts who stands before its pairs, and lists them.
__global__ void __launch_bounds__(kThreads) group_kernel(Groups g, int32_t count, Fault* fault, const char* op) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t below = (1u << lane) - 1;
  const auto first = static_cast<int32_t>(global_thread() / kWarp);
  const auto step = static_cast<int32_t>(global_threads() / kWarp);
  for (int32_t expert = first; expert < count; expert += step) {
    int32_t before = 0, mine = 0;
    for (int32_t p = 0; p < g.pairs; p += kWarp) {
      const bool exists = p + lane < g.pairs;
      const int32_t id = exists ? g.experts[p + lane] : -1;
      if (expert == 0 && exists && (id < 0 || id >= count)) report_out_of_range(fault, op, id, count);
      before += __popc(__ballot_sync(kFullMask, id >= 0 && id < expert));
      mine += __popc(__ballot_sync(kFullMask, id == expert));
    }
    if (expert == count - 1 && lane == 0) *g.total = before + mine;
    for (int32_t p = 0; p < g.pairs && mine > 0; p += kWarp) {
      const bool is_mine = p + lane < g.pairs && g.experts[p + lane] == expert;
      const uint32_t all = __ballot_sync(kFullMask, is_mine);
      if (is_mine) g.order[before + __popc(all & below)] = p + lane;
      before += __popc(all);
    }
  }
}

// y[part][pair, n] = x[row of the pair, k] times the matrix `which + part` of the pair's expert [n, k], transposed.
struct ProductArgs {
  Groups groups;
  const Weight4Bit* matrices;
  const float* x;
  float* y;
  int64_t n, k;
  int32_t which, parts;
  int32_t pairs_per_row;  // of x
  int32_t together;
  bool vectors;
};

template <class W>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(ProductArgs a) {
  BNB_SHARED(Values4bitTables, tables);
  tables.load<W>();
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const int64_t columns = ceil_div(a.n * a.parts, kWarps), items = columns * ceil_div(a.groups.pairs, a.together);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t column = item % columns * kWarps + threadIdx.x / kWarp;
    if (column >= a.n * a.parts) continue;
    const auto part = static_cast<int32_t>(column / a.n);
    const int64_t n = column - part * a.n;
    const auto begin = static_cast<int32_t>(item / columns) * a.together;
    each_run(a.groups, begin, a.together, [&](int32_t expert, int32_t first, int32_t rows) {
      const MatrixView<W> w(a.matrices[expert * kExpertMatrices + a.which + part], tables);
      const float* x[kPairs];
      float sums[kPairs] = {};
#pragma unroll
      for (int r = 0; r < kPairs; r++) x[r] = a.x + a.groups.order[first + (r < rows ? r : 0)] / a.pairs_per_row * a.k;
      const int64_t row = n * a.k;
      if (a.vectors) {
        for (int64_t i = int64_t{lane} * kMatrixRun; i < a.k; i += kWarp * kMatrixRun) {
          float v[kMatrixRun];
          w.run(row + i, v);
#pragma unroll
          for (int r = 0; r < kPairs; r++) {
            if (r >= rows) break;
            float u[kMatrixRun];
            load_run(x[r] + i, u);
#pragma unroll
            for (int j = 0; j < kMatrixRun; j++) sums[r] = fmaf(v[j], u[j], sums[r]);
          }
        }
      } else {
        for (int64_t i = lane; i < a.k; i += kWarp) {
          const float v = w.one(row + i);
#pragma unroll
          for (int r = 0; r < kPairs; r++)
            if (r < rows) sums[r] = fmaf(v, x[r][i], sums[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kPairs; r++) {
        const float sum = warp_sum(sums[r]);
        if (r < rows && lane == r) a.y[(int64_t{part} * a.groups.pairs + a.groups.order[first + r]) * a.n + n] = sum;
      }
    });
  }
}

// dx[pair, k] = the sum over the parts of dy[part][row of the pair, n] times the matrix `which + part` [n, k].
struct ProductBackwardArgs {
  Groups groups;
  const Weight4Bit* matrices;
  const float* dy;
  float* dx;
  int64_t n, k;
  int32_t which, parts;
  int32_t pairs_per_row;  // of dy
  int32_t together;
};

template <class W>
__global__ void __launch_bounds__(kThreads, 2) product_backward_kernel(ProductBackwardArgs a) {
  BNB_SHARED(Values4bitTables, tables);
  BNB_SHARED(float[kWarps][kColumns], shared);
  tables.load<W>();
  __syncthreads();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t strips = ceil_div(a.k, kColumns), items = strips * ceil_div(a.groups.pairs, a.together);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t column0 = item % strips * kColumns;
    const auto begin = static_cast<int32_t>(item / strips) * a.together;
    // The runs are the same for all threads of a block.
    each_run(a.groups, begin, a.together, [&](int32_t expert, int32_t first, int32_t rows) {
      float sums[2][kPairs] = {};
      for (int32_t part = 0; part < a.parts; part++) {
        const MatrixView<W> w(a.matrices[expert * kExpertMatrices + a.which + part], tables);
        for (int64_t i = warp; i < a.n; i += kWarps) {
          float g[kPairs];
#pragma unroll
          for (int r = 0; r < kPairs; r++) {
            const int32_t pair = a.groups.order[first + (r < rows ? r : 0)];
            const int64_t row = int64_t{part} * a.groups.pairs + pair / a.pairs_per_row;
            g[r] = r < rows ? a.dy[row * a.n + i] : 0.0f;
          }
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int64_t column = column0 + half * kWarp + lane;
            if (column >= a.k) continue;
            const float v = w.one(i * a.k + column);
#pragma unroll
            for (int r = 0; r < kPairs; r++) sums[half][r] = fmaf(v, g[r], sums[half][r]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kPairs; r++) {
        shared[warp][lane] = sums[0][r];
        shared[warp][kWarp + lane] = sums[1][r];
        __syncthreads();
        const int64_t column = column0 + threadIdx.x;
        if (threadIdx.x < kColumns && r < rows && column < a.k) {
          float sum = 0;
#pragma unroll
          for (int j = 0; j < kWarps; j++) sum += shared[j][threadIdx.x];
          a.dx[a.groups.order[first + r] * a.k + column] = sum;
        }
        __syncthreads();
      }
    });
  }
}

// y[row] = residual[row] + the sum of share * pairs[row, choice] over its choices of experts that exist; without shares
// and residual, of the pairs alone.
template <class T>
__global__ void __launch_bounds__(kMapThreads)
    combine_kernel(ExpertChoice c, const float* pairs, const float* shares, const T* residual, T* y) {
  const int64_t n = c.tokens * c.hidden;
  for (int64_t i = global_thread(); i < n; i += global_threads()) {
    const int64_t row = i / c.hidden, column = i - row * c.hidden;
    float sum = residual ? widen(residual[i]) : 0.0f;
    for (int64_t j = row * c.choices; j < (row + 1) * c.choices; j++) {
      const int32_t expert = c.experts[j];
      if (expert >= 0 && expert < c.count) sum = fmaf(shares ? shares[j] : 1.0f, pairs[j * c.hidden + column], sum);
    }
    y[i] = narrow<T>(sum);
  }
}

// A warp a pair: from gate, up and dh = the gradient of silu(gate) * up over the share come dgate and dup in their
// places, and the gradient of the share, the sum of dh * silu(gate) * up. Pairs without an expert get zeros.
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(ExpertChoice c, float* gate, float* up, const float* dh, float* dshares) {
  const int lane = threadIdx.x % kWarp;
  const int64_t pairs = c.tokens * c.choices;
  for (int64_t p = global_thread() / kWarp; p < pairs; p += global_threads() / kWarp) {
    const int32_t expert = c.experts[p];
    const bool exists = expert >= 0 && expert < c.count;
    const float share = c.shares[p];
    float sum = 0;
    for (int64_t i = p * c.width + lane; exists && i < (p + 1) * c.width; i += kWarp) {
      const float d = dh[i], g = gate[i], u = up[i], s = sigmoid(g);
      sum = fmaf(d * g * s, u, sum);
      gate[i] = d * share * u * s * fmaf(g, 1.0f - s, 1.0f);
      up[i] = d * share * g * s;
    }
    sum = warp_sum(sum);
    if (lane == 0) dshares[p] = sum;
  }
}

// A piece of the rows, and scratch memory for it.
class Piece {
 public:
  // `by_width` and `by_hidden`: arrays of floats a pair; `by_row`: arrays [rows, hidden].
  Piece(const ExpertChoice& c, int64_t by_width, int64_t by_hidden, int64_t by_row, CudaStream& s) : all_(c), s_(s) {
    const int64_t row = c.choices * (by_width * c.width + by_hidden * c.hidden) + by_row * c.hidden;
    most_ = kScratch / (row > 0 ? row : 1);
    // Pairs are counted in 32 bits.
    const int64_t countable = INT32_MAX / (c.choices > 0 ? c.choices : 1);
    most_ = most_ < 1 ? 1 : most_ > countable ? countable : most_;
    if (most_ > c.tokens) most_ = c.tokens;
    const int64_t floats = most_ * row + 64 * (by_width + by_hidden + by_row);
    const int64_t ints = 64 + (most_ * c.choices + 63) / 64 * 64;
    order_ = static_cast<int32_t*>(s.scratch(static_cast<size_t>(floats + ints) * sizeof(float)));
    floats_ = reinterpret_cast<float*>(order_) + ints;
  }

  int64_t most() const { return most_; }
  // An array of floats that is aligned to 256 bytes.
  float* take(int64_t size) {
    float* const array = floats_;
    floats_ += (size + 63) / 64 * 64;
    return array;
  }

  // Rows [row0, row0 + rows) of the batch, grouped.
  void start(int64_t row0, const char* op) {
    c = all_;
    c.tokens = all_.tokens - row0 < most_ ? all_.tokens - row0 : most_;
    c.experts += row0 * c.choices;
    c.shares += row0 * c.choices;
    groups = {c.experts, order_ + 64, order_, static_cast<int32_t>(c.tokens * c.choices)};
    launch(s_, group_kernel, stride_grid(s_, c.count, kWarps), dim3(kThreads), 0, groups, static_cast<int32_t>(c.count),
           c.fault, op);
  }

  // x as float32: itself, or what `to` then holds.
  const float* widened(const void* x, DType dtype, float* to) const {
    if (dtype == DType::float32) return static_cast<const float*>(x);
    cast(CastArgs{.x = x, .y = to, .n = c.tokens * c.hidden, .from = dtype, .to = DType::float32}, s_);
    return to;
  }

  // y = x times the matrices from `which` on, [pairs, n] each.
  void product(int which, int parts, int64_t pairs_per_row, const float* x, float* y) const {
    const int64_t n = which == kDown ? c.hidden : c.width, k = which == kDown ? c.width : c.hidden;
    const ProductArgs args = {groups,
                              c.matrices,
                              x,
                              y,
                              n,
                              k,
                              which,
                              parts,
                              static_cast<int32_t>(pairs_per_row),
                              pairs_together(groups.pairs),
                              c.aligned && k % kMatrixRun == 0 && aligned_for(16, x)};
    const int64_t items = ceil_div(n * parts, kWarps) * ceil_div(groups.pairs, args.together);
    visit_matrix(c, [&](auto w) {
      launch(s_, product_kernel<decltype(w)>, stride_grid(s_, items, 1), dim3(kThreads), 0, args);
    });
  }

  void product_backward(int which, int parts, int64_t pairs_per_row, const float* dy, float* dx) const {
    const int64_t n = which == kDown ? c.hidden : c.width, k = which == kDown ? c.width : c.hidden;
    const ProductBackwardArgs args = {groups,
                                      c.matrices,
                                      dy,
                                      dx,
                                      n,
                                      k,
                                      which,
                                      parts,
                                      static_cast<int32_t>(pairs_per_row),
                                      pairs_together(groups.pairs)};
    const int64_t items = ceil_div(k, kColumns) * ceil_div(groups.pairs, args.together);
    visit_matrix(c, [&](auto w) {
      launch(s_, product_backward_kernel<decltype(w)>, stride_grid(s_, items, 1), dim3(kThreads), 0, args);
    });
  }

  // y [rows, hidden] of a dtype.
  void combine(const float* pairs, const float* shares, const void* residual, void* y, DType dtype) const {
    visit_float(dtype, [&](auto t) {
      using T = decltype(t);
      launch(s_, combine_kernel<T>, map_grid(s_, c.tokens * c.hidden, 1), dim3(kMapThreads), 0, c, pairs, shares,
             static_cast<const T*>(residual), static_cast<T*>(y));
    });
  }

  ExpertChoice c;  // of these rows
  Groups groups;

 private:
  const ExpertChoice& all_;
  CudaStream& s_;
  int64_t most_;
  int32_t* order_;
  float* floats_;
};

// Where row `row` of an array [rows, hidden] of a float dtype begins; null stays null.
template <class Void>
Void* row_of(Void* x, int64_t row, const ExpertChoice& c, DType dtype) {
  Void* at = nullptr;
  visit_float(dtype, [&](auto t) {
    using T = std::conditional_t<std::is_const_v<Void>, const decltype(t), decltype(t)>;
    if (x) at = static_cast<T*>(x) + row * c.hidden;
  });
  return at;
}

}  // namespace

void experts_swiglu(const ExpertsSwigluArgs& a, CudaStream& s) {
  if (a.choice.tokens == 0) return;
  Piece piece(a.choice, 2, 1, 1, s);
  const ExpertChoice& c = piece.c;
  const int64_t pairs = piece.most() * a.choice.choices;
  float* const wide = piece.take(piece.most() * a.choice.hidden);
  float* const gate_up = piece.take(2 * pairs * a.choice.width);
  float* const out = piece.take(pairs * a.choice.hidden);
  for (int64_t row = 0; row < a.choice.tokens; row += piece.most()) {
    piece.start(row, "experts_swiglu");
    const int64_t size = c.tokens * c.choices * c.width;
    const float* x = piece.widened(row_of(a.x, row, a.choice, a.dtype), a.dtype, wide);
    piece.product(kGate, 2, c.choices, x, gate_up);
    swiglu(SwigluArgs{.gate = gate_up, .up = gate_up + size, .y = gate_up, .size = size, .dtype = DType::float32}, s);
    piece.product(kDown, 1, 1, gate_up, out);
    piece.combine(out, c.shares, row_of(a.residual, row, a.choice, a.dtype), row_of(a.y, row, a.choice, a.dtype),
                  a.dtype);
  }
}

void experts_swiglu_backward(const ExpertsSwigluBackwardArgs& a, CudaStream& s) {
  if (a.choice.tokens == 0) return;
  Piece piece(a.choice, 3, 1, 2, s);
  const ExpertChoice& c = piece.c;
  const int64_t pairs = piece.most() * a.choice.choices;
  float* const wide_x = piece.take(piece.most() * a.choice.hidden);
  float* const wide_dy = piece.take(piece.most() * a.choice.hidden);
  float* const gate_up = piece.take(2 * pairs * a.choice.width);
  float* const dh = piece.take(pairs * a.choice.width);
  float* const dx = piece.take(pairs * a.choice.hidden);
  for (int64_t row = 0; row < a.choice.tokens; row += piece.most()) {
    piece.start(row, "experts_swiglu_backward");
    float* const up = gate_up + c.tokens * c.choices * c.width;
    const float* x = piece.widened(row_of(a.x, row, a.choice, a.dtype), a.dtype, wide_x);
    const float* dy = piece.widened(row_of(a.dy, row, a.choice, a.dtype), a.dtype, wide_dy);
    piece.product(kGate, 2, c.choices, x, gate_up);
    piece.product_backward(kDown, 1, c.choices, dy, dh);
    launch(s, activation_backward_kernel, stride_grid(s, c.tokens * c.choices, kWarps), dim3(kThreads), 0, c, gate_up,
           up, dh, a.dshares + row * c.choices);
    piece.product_backward(kGate, 2, 1, gate_up, dx);
    piece.combine(dx, nullptr, nullptr, row_of(a.dx, row, a.choice, a.dtype), a.dtype);
  }
}

}  // namespace bnb::cuda
