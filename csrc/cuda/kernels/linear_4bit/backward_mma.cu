// dx[m, k] = dy[m, n] dequantize(w)[n, k] for up to 32 rows of dy, on the matrix units.
//
// Layout    a warp has 64 columns of w and steps of 32 rows. With g = lane / 4, t = lane % 4 a lane reads the four
//           bytes of columns 8g .. 8g + 7 in rows 8t .. 8t + 7. A table of pairs in float32 decodes a byte of two rows
//           for the same two columns; packed across the rows, which the product runs over, they are fragments as the
//           matrix units want them: row g of the operand is an even column, row g + 8 the odd one after it.
// Work      as in mma_sm80.cu: a block has a part of n, whose dy stays in shared memory, and goes through groups of
//           columns; its warps share the columns of a group, or the n of the same columns.
// Numerics  T(fl(table * scale)): scales change along the sum, so they cannot wait. Products and sums are float32,
//           parts are added in order. A scale that float16 cannot hold is repaired (repair.cuh).
// Needs     compute capability 8.0, or 7.5 for float16; k % 64 == 0, n % 8 == 0, m <= 32, aligned dy and w.
#include "cuda/kernels/linear_4bit/common.cuh"

namespace bnb::cuda {
namespace {

constexpr int kWidth = static_cast<int>(kLinear4BitColumns), kDepth = static_cast<int>(kLinear4BitDepth);
constexpr int kWarps = 8, kThreads = kWarps * kWarp;
static_assert(kWarps == linear_4bit_warps(1, true));

struct BackwardArgs {
  const void* dy;
  WeightView w;
  int64_t n;
  Sharing share;
};

// A step as loaded: four bytes of eight rows, and the scales of one row, two of them for blocks of 32.
struct Step {
  uint32_t q[8];
  RawScale scale[2];
};

template <class T, int Eights, bool Wide>
class Backward {
 public:
  using Table = FloatPairs<Wide>;
  static_assert(Table::kBytes == linear_4bit_table(Wide));

  __device__ __forceinline__ Backward(const BackwardArgs& a, unsigned char* shared)
      : a_(a), table_(shared), codes_(reinterpret_cast<float*>(shared + Table::kBytes)), half_(a.w.shift < 6) {
    exchange_ = codes_ + kLinear4BitNestedCode / 4;
    dy_ = reinterpret_cast<T*>(exchange_ + linear_4bit_exchange(kWarps, true) / 4);
    runs_ = static_cast<uint32_t>(a.share.outputs / kLinear4BitRun);
    last_ = static_cast<int>(a.n - 1);
  }

  __device__ __forceinline__ void run() {
    const Sharing& p = a_.share;
    const int all = static_cast<int>(ceil_div(a_.n, kDepth)), split = static_cast<int>(blockIdx.x) % p.splits;
    const int block_from = part_of(all, split, p.splits), span = part_of(all, split + 1, p.splits) - block_from;
    const int sum_warp = warp() % p.sum_warps, from = part_of(span, sum_warp, p.sum_warps);
    const int steps = part_of(span, sum_warp + 1, p.sum_warps) - from;
    const int first = static_cast<int>(blockIdx.x) / p.splits, stride = static_cast<int>(gridDim.x) / p.splits;
    const int pitch = static_cast<int>(linear_4bit_pitch(int64_t{span} * kDepth));

    Step next;
    go_to(first);
    if (steps > 0) load(next, block_from + from);
    copy_rows_in(dy_, pitch, static_cast<const T*>(a_.dy), p.m, a_.n, int64_t{block_from} * kDepth, span * kDepth,
                 a_.n);
    cp_async_commit();
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();
    cp_async_wait<0>();
    __syncthreads();

    for (int group = first; group < p.groups; group += stride) {
      float acc[4][Eights][4] = {};
#pragma unroll 2
      for (int i = 0; i < steps; i++) {
        const Step now = next;
        if (i + 1 < steps) load(next, block_from + from + i + 1);
        multiply(acc, now, dy_ + (from + i) * kDepth, pitch);
      }
      if (group + stride < p.groups) {
        go_to(group + stride);
        if (steps > 0) load(next, block_from + from);
      }
      finish_group<kWidth, kWarps, Eights>(p, group, exchange_, [&](int e, float* to) {
        const int g = lane() / 4, t = lane() % 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 2; j++)
            store_vec(to + (2 * t + j) * (kWidth + 4) + 8 * g + 2 * i, Vec<float, 2>{{acc[i][e][j], acc[i][e][2 + j]}});
      });
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

  // Columns beyond the last are the last again; nobody stores their sums.
  __device__ __forceinline__ void go_to(int group) {
    const int64_t strip = int64_t{group} * (kWarps / a_.share.sum_warps) + warp() / a_.share.sum_warps;
    strip_ = strip < runs_ ? static_cast<uint32_t>(strip) : runs_ - 1;
  }

  // Rows beyond the last are the last again; dy has zeros for them.
  __device__ __forceinline__ void load(Step& s, int step) const {
    const int g = lane() / 4, t = lane() % 4;
    const int row0 = step * kDepth;
    const uint64_t pitch = uint64_t{runs_} * 32;
    const uint8_t* from = a_.w.packed + int64_t{strip_} * 32 + g * 4;
    if (row0 + kDepth <= a_.n) {
      from += static_cast<uint64_t>(row0 + 8 * t) * pitch;
#pragma unroll
      for (int i = 0; i < 8; i++, from += pitch) s.q[i] = load_once<1>(from).v[0];
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) s.q[i] = load_once<1>(from + row(row0 + 8 * t + i) * pitch).v[0];
    }
    const uint32_t block = row(row0 + lane()) * runs_ + strip_;
    s.scale[0] = a_.w.raw_scale(half_ ? 2 * block : block >> (a_.w.shift - 6));
    if (half_) s.scale[1] = a_.w.raw_scale(2 * block + 1);
  }
  __device__ __forceinline__ uint32_t row(int i) const { return static_cast<uint32_t>(i < last_ ? i : last_); }

  __device__ __forceinline__ void multiply(float (&acc)[4][Eights][4], const Step& step, const T* dy, int pitch) const {
    const int g = lane() / 4, t = lane() % 4;
    const uint32_t bits = Table::lane_bits(lane());
    uint32_t b[Eights][4];
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const int row = 8 * e + g;
      Vec<uint32_t, 4> v{};
      if (row < a_.share.m) v = load_vec<4>(reinterpret_cast<const uint32_t*>(dy + row * pitch + 8 * t));
#pragma unroll
      for (int i = 0; i < 4; i++) b[e][i] = v.v[i];
    }
    const float mine = a_.w.scale(step.scale[0], codes_, offset_);
    const float other = half_ ? a_.w.scale(step.scale[1], codes_, offset_) : 0.0f;
    // Of rows 8t .. 8t + 7: lane r has the scales of row r.
    float s[8];
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = __shfl_sync(kFullMask, mine, 8 * t + i);
    if (half_) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float second = __shfl_sync(kFullMask, other, 8 * t + i);
        if (g >= 4) s[i] = second;
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        Vec<float, 2> v[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
          v[r] = Table::at(table_, step.q[4 * h + r], i, bits);
          v[r].v[0] *= s[4 * h + r];
          v[r].v[1] *= s[4 * h + r];
        }
        const uint32_t a[4] = {packed_pair<T>(v[0].v[0], v[1].v[0]), packed_pair<T>(v[0].v[1], v[1].v[1]),
                               packed_pair<T>(v[2].v[0], v[3].v[0]), packed_pair<T>(v[2].v[1], v[3].v[1])};
#pragma unroll
        for (int e = 0; e < Eights; e++) {
          const uint32_t pair[2] = {b[e][2 * h], b[e][2 * h + 1]};
          mma_m16n8k16<T>(acc[i][e], a, pair);
        }
      }
    }
  }

  const BackwardArgs& a_;
  unsigned char* table_;
  float *codes_, *exchange_;
  T* dy_;
  uint32_t runs_, strip_ = 0;  // n k < 2^36 and k >= 64, so rows and runs of 32 bytes fit 32 bits
  int last_;
  float offset_ = 0;
  bool half_;
};

template <class T, int Eights, bool Wide>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(BackwardArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  Backward<T, Eights, Wide>(a, shared).run();
}

}  // namespace

void linear_4bit_backward_small_m(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const bool repairs = a.dtype == DType::float16;
  const auto groups = static_cast<int32_t>(ceil_div(a.k, plan.outputs));
  const int64_t partials = plan.splits > 1 ? plan.splits * a.m * a.k : 0;
  int32_t* flags = nullptr;
  float* sums = nullptr;
  if (repairs || partials > 0) {
    flags = static_cast<int32_t*>(s.scratch(kScaleFlags * sizeof(int32_t) + static_cast<size_t>(partials) * 4));
    sums = reinterpret_cast<float*>(flags + kScaleFlags);
  }
  const BackwardArgs args = {
      a.dy,
      view_of(a.w),
      a.n,
      {a.m, a.k, {a.dx, nullptr, a.k, a.dtype, a.dtype}, sums, s.counters, plan.sum_warps, plan.splits, groups}};
  const auto go = [&]<class T, int Eights, bool Wide>() {
    launch(s, backward_kernel<T, Eights, Wide>, dim3(static_cast<unsigned>(plan.blocks)), dim3(kThreads),
           static_cast<size_t>(plan.shared_bytes), args);
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
  if (!repairs) return;
  check_scales(a.w, a.n * a.k, flags, s);
  linear_4bit_backward_simt(a, flags, s);
}

}  // namespace bnb::cuda
