// Reductions of the middle axis of x [outer, n, inner] by any operation that joins two states.
//
// An Op, which kernels get by value, has
//   State                      what is joined; identity(), join(a, b)
//   context(line)              a float that goes with line o * inner + j of the result, handed to of()
//   of(v, i, context)          the state of element i of a line
//   put(line, state)           writes the result
//
// Layout    inner = 1: a team of threads per row (rows.cuh), or a part of a warp for rows of up to 64 elements.
//           Otherwise a block has `x` neighbouring columns (or vectors of columns) and `y` rows at a time.
// Work      where the lines alone do not fill the card, each is cut into pieces, whose states go to scratch
//           [outer, pieces, inner] and are joined by a second kernel.
// Numerics  four or more chains per thread, of at most about 16 links, then fixed trees over threads and pieces: what
// is
//           added in which order depends on the shape, the alignment and the card.
#pragma once
#include "cuda/rows.cuh"

namespace bnb::cuda {

constexpr int kReduceThreads = 256;

struct ReducePlan {
  int64_t outer, n, inner;
  int64_t piece, pieces;  // elements of a line in one piece
  bool vectors;           // of columns, 16 bytes each
  dim3 block;

  int64_t lines() const { return outer * inner; }
  // States in scratch.
  int64_t partials() const { return pieces > 1 ? lines() * pieces : 0; }
};

inline int64_t power_of_two(int64_t at_least) {
  int64_t p = 1;
  while (p < at_least) p *= 2;
  return p;
}

// The longest of `least` * 8, * 4, * 2, * 1 elements with which the pieces of all lines are blocks enough.
inline void cut(ReducePlan& plan, int64_t blocks_per_piece, int64_t least, const CudaStream& s) {
  plan.piece = least * 8;
  while (plan.piece > least && blocks_per_piece * ceil_div(plan.n, plan.piece) < int64_t{4} * s.gpu.sms) {
    plan.piece /= 2;
  }
  plan.pieces = plan.n > plan.piece ? ceil_div(plan.n, plan.piece) : 1;
}

template <class T>
ReducePlan plan_reduce(const CudaStream& s, const void* x, int64_t outer, int64_t n, int64_t inner, bool may_vectors) {
  constexpr int64_t kVec = 16 / sizeof(T);
  ReducePlan plan = {.outer = outer, .n = n, .inner = inner, .piece = n, .pieces = 1, .vectors = false, .block = {}};
  if (inner == 1) {
    cut(plan, outer, 8192, s);
    const int64_t lanes = power_of_two(ceil_div(n, 4));
    plan.block = lanes < kWarp ? dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(kReduceThreads / lanes))
                               : plan_rows<T>(n).block;
    return plan;
  }
  plan.vectors = may_vectors && inner % kVec == 0 && aligned_for(16, static_cast<const T*>(x));
  const int64_t lanes = power_of_two(plan.vectors ? inner / kVec : inner);
  const int64_t rows = power_of_two(ceil_div(n, 4)), most = kReduceThreads / (rows < 8 ? rows : 8);
  const int64_t across = lanes < most ? lanes : most;
  const int64_t left = kReduceThreads / across, down = left < power_of_two(n) ? left : power_of_two(n);
  plan.block = dim3(static_cast<unsigned>(across), static_cast<unsigned>(down));
  cut(plan, outer * ceil_div(inner, across * (plan.vectors ? kVec : 1)), down * 8, s);
  return plan;
}

template <class Op>
struct Join {
  using State = typename Op::State;
  __device__ __forceinline__ State operator()(State a, State b) const { return Op::join(a, b); }
};

template <class Op, class T>
__global__ void __launch_bounds__(kRowThreads, 2)
    reduce_rows(Op op, const T* x, ReducePlan plan, typename Op::State* partials) {
  using State = typename Op::State;
  constexpr int kVec = 16 / sizeof(T), kChains = sizeof(State) == 8 ? 4 : kVec;  // as many as registers allow
  const int64_t items = plan.outer * plan.pieces;
  for (int64_t base = int64_t{blockIdx.x} * blockDim.y; base < items; base += row_step()) {
    // All of a warp go on to the shuffles, also those without a row.
    const int64_t item = base + threadIdx.y;
    const bool has = item < items;
    const int64_t line = !has ? 0 : plan.pieces == 1 ? item : item / plan.pieces;
    const int64_t first = has ? (item - line * plan.pieces) * plan.piece : 0, left = plan.n - first;
    const int64_t count = !has ? 0 : left < plan.piece ? left : plan.piece;
    const T* from = x + line * plan.n + first;
    const float context = has ? op.context(line) : 0.0f;
    State total = Op::identity();
    if (blockDim.x < kWarp) {
      for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        total = Op::join(total, op.of(widen(from[i]), i, context));
      }
      for (int offset = static_cast<int>(blockDim.x) / 2; offset > 0; offset /= 2) {
        total = Op::join(total, __shfl_xor_sync(kFullMask, total, offset));
      }
    } else {
      State part[kChains];
#pragma unroll
      for (int j = 0; j < kChains; j++) part[j] = Op::identity();
      stream_row(
          from, count,
          [&](const auto& vectors, int at, int step) {
            constexpr int kCount = sizeof(vectors) / sizeof(vectors[0]);
#pragma unroll
            for (int j = 0; j < kVec; j++) {
              State chain[kCount];
#pragma unroll
              for (int k = 0; k < kCount; k++) {
                chain[k] = op.of(widen(vectors[k].v[j]), first + at + k * step + j, context);
              }
#pragma unroll
              for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
                for (int k = 0; k < half; k++) chain[k] = Op::join(chain[k], chain[k + half]);
              }
              part[j % kChains] = Op::join(part[j % kChains], chain[0]);
            }
          },
          [&](T x, int at) { total = Op::join(total, op.of(widen(x), first + at, context)); });
#pragma unroll
      for (int half = kChains / 2; half > 0; half /= 2) {
#pragma unroll
        for (int j = 0; j < half; j++) part[j] = Op::join(part[j], part[j + half]);
      }
      total = Op::join(total, part[0]);
      total = team_reduce(total, Join<Op>{}, Op::identity());
    }
    if (!has || threadIdx.x > 0) continue;
    if (plan.pieces == 1) {
      op.put(line, total);
    } else {
      partials[item] = total;
    }
  }
}

// Joins the states of the `blockDim.y` threads of each column of the block; the first of them gets the result. Two
// barriers at least.
template <class Op, int V>
__device__ __forceinline__ void join_down(typename Op::State (&v)[V]) {
  BNB_SHARED(typename Op::State[V][kReduceThreads], states);
  const int me = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  __syncthreads();  // the readers of the time before are done
#pragma unroll
  for (int j = 0; j < V; j++) states[j][me] = v[j];
  for (int half = static_cast<int>(blockDim.y) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) >= half) continue;
#pragma unroll
    for (int j = 0; j < V; j++) {
      v[j] = Op::join(v[j], states[j][me + half * static_cast<int>(blockDim.x)]);
      states[j][me] = v[j];
    }
  }
}

template <class Op, class T, int V>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_columns(Op op, const T* x, ReducePlan plan, typename Op::State* partials) {
  using State = typename Op::State;
  constexpr int kRows = 4;  // that a thread reads at a time
  const int64_t inner = plan.inner, tiles = ceil_div(inner, int64_t{blockDim.x} * V);
  for (int64_t item = blockIdx.x; item < plan.outer * plan.pieces * tiles; item += gridDim.x) {
    const int64_t above = item / tiles, o = above / plan.pieces, piece = above - o * plan.pieces;
    const int64_t col = ((item - above * tiles) * blockDim.x + threadIdx.x) * V;
    const int64_t first = piece * plan.piece, end = first + plan.piece < plan.n ? first + plan.piece : plan.n;
    const bool has = col < inner;
    State total[V];
#pragma unroll
    for (int j = 0; j < V; j++) total[j] = Op::identity();
    if (has) {
      float context[V];
#pragma unroll
      for (int j = 0; j < V; j++) context[j] = op.context(o * inner + col + j);
      const T* from = x + o * plan.n * inner + col;
      for (int64_t i = first + threadIdx.y; i < end; i += kRows * blockDim.y) {
        Vec<T, V> raw[kRows];
#pragma unroll
        for (int k = 0; k < kRows; k++) {
          const int64_t at = i + k * static_cast<int>(blockDim.y);
          if (at < end) raw[k] = load_vec<V>(from + at * inner);
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
          State row[kRows];
#pragma unroll
          for (int k = 0; k < kRows; k++) {
            const int64_t at = i + k * static_cast<int>(blockDim.y);
            row[k] = at < end ? op.of(widen(raw[k].v[j]), at, context[j]) : Op::identity();
          }
          total[j] = Op::join(total[j], Op::join(Op::join(row[0], row[1]), Op::join(row[2], row[3])));
        }
      }
    }
    join_down<Op>(total);
    if (!has || threadIdx.y > 0) continue;
#pragma unroll
    for (int j = 0; j < V; j++) {
      if (plan.pieces == 1) {
        op.put(o * inner + col + j, total[j]);
      } else {
        partials[above * inner + col + j] = total[j];
      }
    }
  }
}

// Joins the pieces of each line.
template <class Op>
__global__ void __launch_bounds__(kReduceThreads)
    join_pieces(Op op, ReducePlan plan, const typename Op::State* partials) {
  using State = typename Op::State;
  const int64_t lines = plan.outer * plan.inner;
  for (int64_t base = int64_t{blockIdx.x} * blockDim.x; base < lines; base += int64_t{gridDim.x} * blockDim.x) {
    const int64_t line = base + threadIdx.x;
    State total[1] = {Op::identity()};
    if (line < lines) {
      const int64_t o = plan.inner == 1 ? line : line / plan.inner;
      const State* from = partials + o * plan.pieces * plan.inner + (line - o * plan.inner);
#pragma unroll 4
      for (int64_t p = threadIdx.y; p < plan.pieces; p += blockDim.y)
        total[0] = Op::join(total[0], from[p * plan.inner]);
    }
    join_down<Op>(total);
    if (line < lines && threadIdx.y == 0) op.put(line, total[0]);
  }
}

// `partials` has plan.partials() states.
template <class Op, class T>
void launch_reduce(CudaStream& s, const ReducePlan& plan, const Op& op, const void* x, typename Op::State* partials) {
  const T* from = static_cast<const T*>(x);
  if (plan.inner == 1) {
    launch(s, reduce_rows<Op, T>, stride_grid(s, plan.outer * plan.pieces, plan.block.y), plan.block, 0, op, from, plan,
           partials);
  } else {
    constexpr int kVec = Op::kVectors ? 16 / sizeof(T) : 1;
    const int64_t tiles = ceil_div(plan.inner, int64_t{plan.block.x} * (plan.vectors ? kVec : 1));
    launch(s, plan.vectors ? reduce_columns<Op, T, kVec> : reduce_columns<Op, T, 1>,
           stride_grid(s, plan.outer * plan.pieces * tiles, 1), plan.block, 0, op, from, plan, partials);
  }
  if (plan.pieces == 1) return;
  // Few lines: more threads to each. Neighbouring lines lie together except where inner = 1.
  const unsigned across = plan.inner == 1 ? 1 : plan.lines() < int64_t{64} * s.gpu.sms ? 8 : 32;
  launch(s, join_pieces<Op>, stride_grid(s, plan.lines(), across), dim3(across, kReduceThreads / across), 0, op, plan,
         partials);
}

}  // namespace bnb::cuda
