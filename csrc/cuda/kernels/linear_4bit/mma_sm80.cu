// y[m, n] = x[m, k] dequantize(w)[n, k]^T + bias for up to 32 rows of x, on the matrix units.
//
// Layout    a warp has 32 rows of w and up to 32 rows of x (row_tile.cuh). Packed weights and scales go from memory
//           to registers up to four runs of 64 k ahead; the rows of x of the block's part of k stay in shared memory. A
//           table in shared memory turns a byte, two codes, into a pair of 16-bit weights: one PRMT and one load.
// Work      a block has a part of k and goes through groups of rows of w; its warps share the rows of a group, or the
//           k of the same rows. Sums meet in shared memory, those of other blocks in scratch, where the last block of
//           a group adds them up.
// Numerics  table values are rounded once to the type of x; products and sums are float32, the scale multiplies the
//           sum of a block. Parts are added in order, so the bits do not depend on timing.
// Needs     compute capability 8.0, or 7.5 for float16; k % 64 == 0, m <= 32, aligned x and w (plan/linear_4bit.h).
#include "cuda/kernels/linear_4bit/row_tile.cuh"

namespace bnb::cuda {
namespace {

struct SmallArgs {
  const void* x;
  WeightView w;
  int64_t k;
  Sharing share;
};

template <class T, int Eights, bool Wide>
class SmallM {
 public:
  static constexpr int kWarps = Eights <= 2 ? 16 : 8, kThreads = kWarps * kWarp;
  // Runs under way per warp: what 128 registers of a thread hold, or 255.
  static constexpr int kAhead = Eights == 2 ? 2 : 4;
  using Table = HalfPairs<T, Wide>;
  static_assert(kWarps == linear_4bit_warps(Eights * 8, false) && Table::kBytes == linear_4bit_table(Wide));

  __device__ __forceinline__ SmallM(const SmallArgs& a, unsigned char* shared)
      : a_(a),
        tile_(a.w, a.share.outputs, a.k, a.w.shift < 6),
        table_(shared),
        codes_(reinterpret_cast<float*>(shared + Table::kBytes)) {
    exchange_ = codes_ + kLinear4BitNestedCode / 4;
    x_ = reinterpret_cast<T*>(exchange_ + linear_4bit_exchange(kWarps, false) / 4);
  }

  __device__ __forceinline__ void run() {
    const Sharing& p = a_.share;
    const int runs = static_cast<int>(a_.k / kLinear4BitRun), split = static_cast<int>(blockIdx.x) % p.splits;
    const int block_from = part_of(runs, split, p.splits), span = part_of(runs, split + 1, p.splits) - block_from;
    const int sum_warp = warp() % p.sum_warps, from = part_of(span, sum_warp, p.sum_warps);
    const int steps = part_of(span, sum_warp + 1, p.sum_warps) - from;
    const int first = static_cast<int>(blockIdx.x) / p.splits, stride = static_cast<int>(gridDim.x) / p.splits;
    const int pitch = static_cast<int>(linear_4bit_pitch(int64_t{span} * kLinear4BitRun));

    Run ring[kAhead];
    tile_.go_to(row_of(first));
    fill(ring, 0, block_from + from, steps);
    copy_rows_in(x_, pitch, static_cast<const T*>(a_.x), p.m, a_.k, int64_t{block_from} * kLinear4BitRun,
                 span * static_cast<int>(kLinear4BitRun), a_.k);
    cp_async_commit();
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();
    cp_async_wait<0>();
    __syncthreads();

    const T* x[Eights];
    bool exists[Eights];
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const int row = 8 * e + lane() / 4;
      exists[e] = row < p.m;
      x[e] = x_ + (exists[e] ? row : 0) * pitch + tile_.place();
    }

    for (int group = first; group < p.groups; group += stride) {
      float acc[2][Eights][4] = {};
      // The ring turns once per kAhead steps, the last turn of a group with empty places.
      for (int i = 0; i < steps; i += kAhead) {
#pragma unroll
        for (int slot = 0; slot < kAhead; slot++) {
          if (i + slot < steps) {
            if (tile_.half())
              multiply<true>(acc, ring[slot], x, exists, from + i + slot);
            else
              multiply<false>(acc, ring[slot], x, exists, from + i + slot);
          }
          if (i + kAhead + slot < steps) tile_.load(ring[slot], block_from + from + i + kAhead + slot);
        }
      }
      if (group + stride < p.groups) {
        tile_.go_to(row_of(group + stride));
        fill(ring, 0, block_from + from, steps);
      }
      finish_group<static_cast<int>(kLinear4BitRows), kWarps, Eights>(p, group, exchange_, [&](int e, float* to) {
        const int g = lane() / 4, t = lane() % 4;
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
          for (int j = 0; j < 4; j++)
            to[(2 * t + j % 2) * (kLinear4BitRows + 4) + 16 * r + g + j / 2 * 8] = acc[r][e][j];
      });
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

  __device__ __forceinline__ int64_t row_of(int group) const {
    const int rows = kWarps / a_.share.sum_warps;
    return (int64_t{group} * rows + warp() / a_.share.sum_warps) * kLinear4BitRows;
  }

  __device__ __forceinline__ void fill(Run (&ring)[kAhead], int from, int run, int steps) const {
#pragma unroll
    for (int slot = 0; slot < kAhead; slot++)
      if (from + slot < steps) tile_.load(ring[slot], run + from + slot);
  }

  // Half: blocks of 32. acc += the run of w times that of x, which is number `at` in shared memory.
  template <bool Half>
  __device__ __forceinline__ void multiply(float (&acc)[2][Eights][4], const Run& run, const T* const (&x)[Eights],
                                           const bool (&exists)[Eights], int at) const {
    uint32_t b[Eights][8];
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(x[e] + at * kLinear4BitRun);
      Vec<uint32_t, 4> low{}, high{};
      if (exists[e]) {
        low = load_vec<4>(from);
        high = load_vec<4>(from + (Half ? 16 : 4));
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        b[e][i] = low.v[i];
        b[e][4 + i] = high.v[i];
      }
    }
    const uint32_t bits = Table::lane_bits(lane());
    float s[4];
    tile_.scales(s, run.scale[0], codes_, offset_);
    float c[2][Eights][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (j == 2 && Half) {
        add(acc, c, s);
        tile_.scales(s, run.scale[1], codes_, offset_);
      }
#pragma unroll
      for (int r = 0; r < 2; r++) {
        uint32_t a[4];
        fragment<Table>(a, table_, run, r, j, bits);
#pragma unroll
        for (int e = 0; e < Eights; e++) {
          const uint32_t pair[2] = {b[e][2 * j], b[e][2 * j + 1]};
          if (j == 0 || (j == 2 && Half))
            mma_m16n8k16_first<T>(c[r][e], a, pair);
          else
            mma_m16n8k16<T>(c[r][e], a, pair);
        }
      }
    }
    add(acc, c, s);
  }
  static __device__ __forceinline__ void add(float (&acc)[2][Eights][4], const float (&c)[2][Eights][4],
                                             const float (&s)[4]) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int e = 0; e < Eights; e++) add_scaled(acc[r][e], c[r][e], s[2 * r], s[2 * r + 1]);
  }

  const SmallArgs& a_;
  RowTile tile_;
  unsigned char* table_;
  float *codes_, *exchange_;
  T* x_;
  float offset_ = 0;
};

template <class T, int Eights, bool Wide>
__global__ void __launch_bounds__(SmallM<T, Eights, Wide>::kThreads, 1) small_m_kernel(SmallArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  SmallM<T, Eights, Wide>(a, shared).run();
}

}  // namespace

void linear_4bit_small_m(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const auto groups = static_cast<int32_t>(ceil_div(a.n, plan.outputs));
  float* partials = nullptr;
  if (plan.splits > 1)
    partials = static_cast<float*>(s.scratch(static_cast<size_t>(plan.splits * a.m * a.n) * sizeof(float)));
  const SmallArgs args = {a.x,
                          view_of(a.w),
                          a.k,
                          {a.m,
                           a.n,
                           {a.y, a.bias, a.n, a.y_dtype, a.bias_dtype, a.residual},
                           partials,
                           s.counters,
                           plan.sum_warps,
                           plan.splits,
                           groups}};
  const auto go = [&]<class T, int Eights, bool Wide>() {
    launch(s, small_m_kernel<T, Eights, Wide>, dim3(static_cast<unsigned>(plan.blocks)),
           dim3(SmallM<T, Eights, Wide>::kThreads), static_cast<size_t>(plan.shared_bytes), args);
  };
  const auto rows = [&]<class T, bool Wide>() {
    if (plan.tokens == 8)
      go.template operator()<T, 1, Wide>();
    else if (plan.tokens == 16)
      go.template operator()<T, 2, Wide>();
    else
      go.template operator()<T, 4, Wide>();
  };
  const auto type = [&]<class T>() {
    plan.wide_table ? rows.template operator()<T, true>() : rows.template operator()<T, false>();
  };
  a.dtype == DType::float16 ? type.template operator()<f16>() : type.template operator()<bf16>();
}

}  // namespace bnb::cuda
