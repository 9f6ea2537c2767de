// dx[m, k] = dy[m, n] dequantize(w)[n, k] for up to 32 rows of dy, on the matrix units.
//
// Layout    a warp has 128 columns of w and steps of 16 rows. With g = lane / 4, t = lane % 4 a lane reads the eight
//           bytes of columns 16g .. 16g + 15 in rows 4t .. 4t + 3. A table of pairs in float32 decodes a byte of two
//           rows for the same two columns; packed across the rows, which the product runs over, they are fragments as
//           the matrix units want them: row g of the operand is an even column, row g + 8 the odd one after it. A lane
//           loads the scale of one row, two for blocks of 32, and shuffles bring it to the lanes that need it.
// Work      as in mma_sm80.cu: a block has a part of n, whose dy stays in shared memory, and goes through groups of
//           columns; its warps share the columns of a group, or the n of the same columns.
// Numerics  T(fl(table * scale)): scales change along the sum, so they cannot wait. Products and sums are float32,
//           parts are added in order. A scale that float16 cannot hold is repaired (repair.cuh).
// Needs     compute capability 8.0, or 7.5 for float16; k % 64 == 0, n % 8 == 0, m <= 32, aligned dy and w.
#include "cuda/kernels/linear_4bit/common.cuh"
#include "cuda/kernels/linear_4bit/repair.cuh"

namespace bnb::cuda {
namespace {

constexpr int kColumns = static_cast<int>(kLinear4BitColumns), kDepth = static_cast<int>(kLinear4BitDepth);
constexpr int kLane = 16, kRows = 4;  // columns and rows of a lane
constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kParts = 2, kWidth = kColumns / kParts;  // of the exchange of sums
static_assert(kWarps == linear_4bit_warps(1, true) && kColumns == 8 * kLane && kDepth == 4 * kRows);

struct BackwardArgs {
  const void* dy;
  WeightView w;
  int64_t n;
  Sharing share;
};

// Half: blocks of 32.
template <class T, int Eights, bool Wide, bool Half>
class Backward {
 public:
  static constexpr int kAhead = 4, kBlocks = Half ? 2 : 1;
  using Table = FloatPairs<Wide>;
  static_assert(Table::kBytes == linear_4bit_table(Wide));

  __device__ __forceinline__ Backward(const BackwardArgs& a, unsigned char* shared)
      : a_(a), table_(shared), codes_(reinterpret_cast<float*>(shared + Table::kBytes)) {
    exchange_ = codes_ + kLinear4BitNestedCode / 4;
    dy_ = reinterpret_cast<T*>(exchange_ + linear_4bit_exchange(kWarps, true) / 4);
    pitch_ = static_cast<uint32_t>(a.share.outputs / 2);
    runs_ = static_cast<uint32_t>(a.share.outputs / kLinear4BitRun);
    last_ = static_cast<int>(a.n - 1);
  }

  __device__ __forceinline__ void run() {
    const Sharing& p = a_.share;
    const BlockShare<false> block{p};
    const WarpShare mine(block, static_cast<int>(ceil_div(a_.n, kDepth)));
    const int span = mine.block_steps * kDepth, pitch = static_cast<int>(linear_4bit_pitch(span, true));
    Step ring[kAhead];
    const auto load = [&](Step& step, int ahead) { this->load(step, ahead); };
    const auto fill = [&](int group) {
      go_to(WarpShare::place(p, group, kWarps), (mine.block_from + mine.from) * kDepth);
      fill_ring(ring, mine.steps, load);
    };

    fill(mine.first);
    copy_rows_in(dy_, pitch, static_cast<const T*>(a_.dy), p.m, a_.n, int64_t{mine.block_from} * kDepth, span, a_.n);
    cp_async_commit();
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();
    cp_async_wait<0>();
    __syncthreads();

    // Rows of dy that do not exist are those of the first; nobody stores their sums.
    const T* dy[Eights];
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const int row = 8 * e + lane() / 4;
      dy[e] = dy_ + (row < p.m ? row : 0) * pitch + mine.from * kDepth + lane() % 4 * kRows;
    }

    for (int group = mine.first; group < p.groups; group += mine.stride) {
      float acc[kLane / 2][Eights][4] = {};
      go_round(
          ring, mine.steps, load, [&](const Step& step, int i) { multiply(acc, step, dy, i); },
          [&] { row_ += kAhead * kDepth; });
      if (group + mine.stride < p.groups) fill(group + mine.stride);
      finish_group<kWidth, kParts, kWarps, Eights>(block, group, exchange_, [&](int e, int part, float* to) {
        const int g = lane() / 4, t = lane() % 4;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
          for (int j = 0; j < 2; j++)
            store_vec(to + (2 * t + j) * (kWidth + 4) + 8 * g + 2 * i,
                      Vec<float, 2>{{acc[4 * part + i][e][j], acc[4 * part + i][e][2 + j]}});
      });
    }
  }

 private:
  // A step as loaded: eight bytes of four rows, and the scale of row 4t + i and run b of the 128 columns, where the
  // number of the lane is 16b + 4i + t.
  struct Step {
    uint32_t q[kRows][2];
    RawScales<kBlocks> scale;
  };

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // Columns beyond the last are the last again; nobody stores their sums.
  __device__ __forceinline__ void go_to(int64_t place, int row) {
    const auto first = static_cast<uint32_t>(place) * 2, run = first + static_cast<uint32_t>(lane() / 16);
    const auto column = first * 64 + static_cast<uint32_t>(lane() / 4 * kLane), end = runs_ * 64 - kLane;
    from_ = a_.w.packed + (column < end ? column : end) / 2;
    run_ = run < runs_ ? run : runs_ - 1;
    row_ = row;
  }

  // The step `ahead` of where the warp is. Rows beyond the last are the last again; dy has zeros for them.
  __device__ __forceinline__ void load(Step& s, int ahead) const {
    const int row = row_ + ahead * kDepth;
    const uint32_t first = clamped(row + lane() % 4 * kRows, kRows - 1);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const Vec<uint32_t, 2> q = load_once<2>(offset_by(from_, first + static_cast<uint32_t>(i), pitch_));
      s.q[i][0] = q.v[0];
      s.q[i][1] = q.v[1];
    }
    const uint32_t run = clamped(row + lane() % 4 * kRows + lane() / 4 % 4, 0) * runs_ + run_;
    if constexpr (Half)
      s.scale = a_.w.template raw_scales<2>(2 * run);
    else
      s.scale = a_.w.template raw_scales<1>(run >> (a_.w.shift - 6));
  }
  // Row i, or the last that has `more` after it.
  __device__ __forceinline__ uint32_t clamped(int i, int more) const {
    return static_cast<uint32_t>(i < last_ - more ? i : last_ - more);
  }

  // s[i] = the scale of row 4t + i, in the columns of this lane.
  static constexpr uint32_t kOthers = 0b10011;
  __device__ __forceinline__ void scales(float (&s)[kRows], const Step& step) const {
    const float first = a_.w.scale(step.scale, 0, codes_, offset_);
#pragma unroll
    for (int i = 0; i < kRows; i++) s[i] = shuffle_keeping<kOthers>(first, static_cast<uint32_t>(4 * i));
    if constexpr (Half) {
      const float second = a_.w.scale(step.scale, 1, codes_, offset_);
#pragma unroll
      for (int i = 0; i < kRows; i++) {
        const float other = shuffle_keeping<kOthers>(second, static_cast<uint32_t>(4 * i));
        s[i] = lane() / 8 % 2 == 0 ? s[i] : other;
      }
    }
  }

  // acc += the step of w times that of dy, number `at` of this warp.
  __device__ __forceinline__ void multiply(float (&acc)[kLane / 2][Eights][4], const Step& step,
                                           const T* const (&dy)[Eights], int at) const {
    float s[kRows];
    scales(s, step);
    uint32_t b[Eights][2];
#pragma unroll
    for (int e = 0; e < Eights; e++) {
      const Vec<uint32_t, 2> v = load_vec<2>(reinterpret_cast<const uint32_t*>(dy[e] + at * kDepth));
      b[e][0] = v.v[0];
      b[e][1] = v.v[1];
    }
    const uint32_t bits = Table::lane_bits(lane());
#pragma unroll
    for (int i = 0; i < kLane / 2; i++) {
      Vec<float, 2> v[kRows];
#pragma unroll
      for (int r = 0; r < kRows; r++) {
        v[r] = Table::at(table_, step.q[r][i / 4], i % 4, bits);
        v[r].v[0] *= s[r];
        v[r].v[1] *= s[r];
      }
      const uint32_t a[4] = {packed_pair<T>(v[0].v[0], v[1].v[0]), packed_pair<T>(v[0].v[1], v[1].v[1]),
                             packed_pair<T>(v[2].v[0], v[3].v[0]), packed_pair<T>(v[2].v[1], v[3].v[1])};
#pragma unroll
      for (int e = 0; e < Eights; e++) mma_m16n8k16<T>(acc[i][e], a, b[e]);
    }
  }

  const BackwardArgs& a_;
  unsigned char* table_;
  float *codes_, *exchange_;
  T* dy_;
  const uint8_t* from_ = nullptr;  // row 0 of w, at the first column of this lane
  uint32_t pitch_, runs_;          // of a row of w: n k < 2^36 and k >= 64, so rows and runs fit 32 bits
  uint32_t run_ = 0;               // of the scale that this lane loads
  int row_ = 0, last_;
  float offset_ = 0;
};

template <class T, int Eights, bool Wide, bool Half>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(BackwardArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  Backward<T, Eights, Wide, Half>(a, shared).run();
}

}  // namespace

void linear_4bit_backward_small_m(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const bool repairs = a.dtype == DType::float16;
  const auto groups = static_cast<int32_t>(ceil_div(a.k, plan.outputs));
  const int64_t partials = plan.splits > 1 ? plan.splits * a.m * a.k : 0;
  const SplitScratch scratch(s, repairs, partials);
  const BackwardArgs args = {a.dy,
                             view_of(a.w),
                             a.n,
                             {a.m,
                              a.k,
                              {a.dx, nullptr, a.k, a.dtype, a.dtype},
                              scratch.sums,
                              s.counters,
                              plan.sum_warps,
                              plan.splits,
                              groups}};
  visit_small_m(a.dtype, plan, a.w.blocksize, [&]<class T, int Eights, bool Wide, bool Half>() {
    launch(s, backward_kernel<T, Eights, Wide, Half>, dim3(static_cast<unsigned>(plan.blocks)), dim3(kThreads),
           static_cast<size_t>(plan.shared_bytes), args);
  });
  if (repairs) repair_backward(a, scratch.flags, s);
}

}  // namespace bnb::cuda
