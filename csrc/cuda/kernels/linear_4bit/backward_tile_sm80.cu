// dx[m, k] = dy[m, n] dequantize(w)[n, k] in tiles, for more rows of dy than small_m takes and fewer than `dense`
// needs.
//
// Layout    a block has 64 or 128 rows of dy and 128 columns of w; steps of 32 rows of w, over which the product runs.
//           dy goes through a ring of stages in shared memory as in matmul (mma_tile.cuh). Packed weights go from
//           memory to registers one step ahead, are decoded to 16 bits into one of two buffers, and come from there by
//           transposing loads. A thread decodes 16 columns of a row; its two pieces of eight lie 64 columns apart in
//           the buffer, so that eight threads that store together meet no bank twice.
// Work      every weight is decoded once per tile, while the step before is multiplied. Blocks that share the sum of a
//           tile leave their parts in scratch, in the order of registers; the last one adds them up.
// Numerics  T(fl(table * scale)), products and sums in float32, parts added in order. A scale that float16 cannot hold
//           is repaired (repair.cuh).
// Needs     compute capability 8.0; k % 64 == 0, n % 8 == 0, aligned dy and w (plan/linear_4bit.h).
#include "cuda/kernels/linear_4bit/common.cuh"
#include "cuda/kernels/linear_4bit/repair.cuh"
#include "cuda/kernels/matmul/mma_tile.cuh"

namespace bnb::cuda {
namespace {

constexpr int kColumns = static_cast<int>(kLinear4BitTileOutputs), kDepth = static_cast<int>(kLinear4BitTileDepth);
constexpr int kLane = 16;  // columns of a row that a thread decodes
constexpr int kThreads = 256;
using Table = FloatPairs<false>;

constexpr MatmulTileShape kShape64 = {64, kColumns, kDepth, kLinear4BitTileStages};
constexpr MatmulTileShape kShape128 = {128, kColumns, kDepth, kLinear4BitTileStages};
// Eight warps in two rows of four.
template <int Tokens>
using Place = MmaTile<Tokens == 64 ? kShape64 : kShape128, 2, 4, 1>;

struct BackwardTileArgs {
  const void* dy;
  WeightView w;
  void* dx;
  int64_t m, n, k;
  float* partials;  // [tiles, splits, threads' sums], or null for one split
  int32_t* counters;
  int32_t splits;
};

template <class T, int Tokens>
class BackwardTile {
 public:
  using P = Place<Tokens>;
  static constexpr int kBuffer = kDepth * kColumns * 2, kSums = P::kRows * P::kCols * 4;
  static_assert(P::kThreads == kThreads && kThreads == kDepth * (kColumns / kLane));

  __device__ __forceinline__ BackwardTile(const BackwardTileArgs& a, unsigned char* shared)
      : a_(a),
        table_(shared),
        codes_(reinterpret_cast<float*>(shared + Table::kBytes)),
        buffers_(shared + Table::kBytes + kLinear4BitNestedCode),
        ring_(buffers_ + 2 * kBuffer) {
    const int64_t column0 = this->column0(), k = column0 + group() * kLane, within = k < a.k ? k : a.k - kLane;
    from_ = a.w.packed + within / 2;
    sixteenth_ = static_cast<uint32_t>(within / kLane);
    rows_ = static_cast<int>(a.m - token0() < Tokens ? a.m - token0() : Tokens);
  }

  __device__ __forceinline__ void run() {
    const int all = static_cast<int>(ceil_div(a_.n, kDepth));
    const int from = part_of(all, split(), a_.splits), to = part_of(all, split() + 1, a_.splits);

    Codes codes = load(from);
#pragma unroll
    for (int i = 0; i < P::kStages - 1; i++) {
      if (from + i < to) copy(i, from + i);
      cp_async_commit();
    }
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();
    __syncthreads();
    decode(codes, buffers_);
    codes = load(from + 1);

    float sums[P::kRows][P::kCols][4];
    clear<P>(sums);
    int stage = 0;
#pragma unroll 1
    for (int step = from; step < to; step++) {
      cp_async_wait<P::kStages - 2>();
      __syncthreads();  // dy and weights of this step are there for all, and all have left those of the step before
      const int ahead = step + P::kStages - 1;
      if (ahead < to) copy(stage == 0 ? P::kStages - 1 : stage - 1, ahead);
      cp_async_commit();
      if (step + 1 < to) {
        decode(codes, buffers_ + (step + 1 - from) % 2 * kBuffer);
        if (step + 2 < to) codes = load(step + 2);
      }
      multiply_stage<P, true, false>(
          ring_ + stage * P::kBytesA, buffers_ + (step - from) % 2 * kBuffer, sums,
          [](float(&d)[4], const uint32_t(&x)[4], const uint32_t(&y)[2]) { mma_m16n8k16<T>(d, x, y); });
      stage = stage == P::kStages - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    const int64_t tile = int64_t{blockIdx.y / static_cast<unsigned>(a_.splits)} * gridDim.x + blockIdx.x;
    float(&flat)[kSums] = reinterpret_cast<float(&)[kSums]>(sums);
    if (a_.splits > 1 && !add_splits<kSums, kThreads>(flat, a_.partials, a_.counters, tile, split(), a_.splits)) return;
    emit_tile<P>(ring_, sums, [&](int row, int column, const float(&pair)[2]) {
      const int64_t m = token0() + row, k = column0() + column % 64 / 8 * 16 + column / 64 * 8 + column % 8;
      if (m >= a_.m || k >= a_.k) return;
      store_vec(static_cast<T*>(a_.dx) + m * a_.k + k, Vec<T, 2>{{narrow<T>(pair[0]), narrow<T>(pair[1])}});
    });
  }

 private:
  // Eight bytes of a row, and their scale: blocks are not smaller than 32.
  struct Codes {
    uint32_t q[2];
    RawScales<1> scale;
  };

  // Blocks side by side share columns of w.
  static __device__ __forceinline__ int64_t token0() { return int64_t{blockIdx.x} * Tokens; }
  __device__ __forceinline__ int64_t column0() const {
    return int64_t{blockIdx.y / static_cast<unsigned>(a_.splits)} * kColumns;
  }
  __device__ __forceinline__ int split() const {
    return static_cast<int>(blockIdx.y % static_cast<unsigned>(a_.splits));
  }
  // The row of a step and the sixteen of its columns that this thread decodes.
  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / (kColumns / kLane); }
  static __device__ __forceinline__ int group() { return static_cast<int>(threadIdx.x) % (kColumns / kLane); }

  // Rows and columns beyond the last are the last again: dy has zeros for such rows, and nobody stores such columns.
  __device__ __forceinline__ Codes load(int step) const {
    const int last = static_cast<int>(a_.n) - 1, n = step * kDepth + row();
    const auto at = static_cast<uint32_t>(n < last ? n : last);
    const Vec<uint32_t, 2> q = load_once<2>(offset_by(from_, at, static_cast<uint32_t>(a_.k / 2)));
    // n k < 2^36, so sixteenths fit 32 bits.
    const uint32_t sixteenth = at * static_cast<uint32_t>(a_.k / kLane) + sixteenth_;
    return {{q.v[0], q.v[1]}, a_.w.template raw_scales<1>(sixteenth >> (a_.w.shift - 4))};
  }

  // Step `step` of dy; zeros beyond its rows and columns.
  __device__ __forceinline__ void copy(int stage, int step) const {
    constexpr int kPieces = kDepth / 8, kApart = kThreads / kPieces;
    const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    const int64_t n = int64_t{step} * kDepth + piece * 8;
    const int rows = n < a_.n ? rows_ - row : 0;
    const T* from = static_cast<const T*>(a_.dy) + (token0() + row) * a_.n + n;
#pragma unroll
    for (int i = 0; i < Tokens; i += kApart, from += kApart * a_.n)
      cp_async16(ring_ + stage * P::kBytesA + piece_offset<kPieces>(row + i, piece), from, i < rows);
  }

  __device__ __forceinline__ void decode(const Codes& codes, unsigned char* buffer) const {
    const float s = a_.w.scale(codes.scale, 0, codes_, offset_);
    const uint32_t bits = Table::lane_bits(static_cast<int>(threadIdx.x) % kWarp);
#pragma unroll
    for (int piece = 0; piece < 2; piece++) {
      Vec<uint32_t, 4> v;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Vec<float, 2> pair = Table::at(table_, codes.q[piece], i, bits);
        v.v[i] = packed_pair<T>(pair.v[0] * s, pair.v[1] * s);
      }
      store_vec(reinterpret_cast<uint32_t*>(buffer + piece_offset<kColumns / 8>(row(), group() + 8 * piece)), v);
    }
  }

  const BackwardTileArgs& a_;
  unsigned char* table_;
  float* codes_;
  unsigned char *buffers_, *ring_;
  float offset_ = 0;
  const uint8_t* from_;  // row 0 of w, at the columns of this thread; they are number sixteenth_ of a row
  uint32_t sixteenth_;
  int rows_;  // of dy in this tile
};

template <class T, int Tokens>
__global__ void __launch_bounds__(kThreads, 2) backward_tile_kernel(BackwardTileArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  if constexpr (kSm80) BackwardTile<T, Tokens>(a, shared).run();
}

}  // namespace

void linear_4bit_backward_tile(const Linear4BitBackwardArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const bool repairs = a.dtype == DType::float16;
  const int64_t tiles_m = ceil_div(a.m, plan.tokens), tiles = tiles_m * ceil_div(a.k, kLinear4BitTileOutputs);
  const SplitScratch scratch(s, repairs, plan.splits > 1 ? tiles * plan.splits * kColumns * plan.tokens : 0);
  const BackwardTileArgs args = {a.dy, view_of(a.w), a.dx, a.m, a.n, a.k, scratch.sums, s.counters, plan.splits};
  const dim3 grid(static_cast<unsigned>(tiles_m), static_cast<unsigned>(plan.blocks / tiles_m));
  const auto tokens = [&]<class T>() {
    launch(s, plan.tokens == 64 ? backward_tile_kernel<T, 64> : backward_tile_kernel<T, 128>, grid, dim3(kThreads),
           static_cast<size_t>(plan.shared_bytes), args);
  };
  a.dtype == DType::float16 ? tokens.template operator()<f16>() : tokens.template operator()<bf16>();
  if (repairs) repair_backward(a, scratch.flags, s);
}

}  // namespace bnb::cuda
