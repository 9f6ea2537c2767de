// y[m, n] = x[m, k] dequantize(w)[n, k]^T + bias in tiles, for more rows of x than small_m takes.
//
// Layout    a block has 128 rows of w and 64 or 128 rows of x; four warps have 32 rows of w each (row_tile.cuh) and
//           all rows of x, four more the same with the other half of each step of 128 k. x goes through a ring of
//           stages in shared memory, its 16-byte pieces swapped between neighbours in odd rows so that loads of
//           fragments meet no bank twice; packed weights go from memory to registers one step ahead.
// Work      every weight is decoded once per tile, by one load from a table of pairs. Blocks that share the sum of a
//           tile leave their parts in scratch, in the order of registers; the last one adds them up.
// Numerics  as in mma_sm80.cu: table values rounded once to the type of x, the scale on the float32 sum of a block,
//           parts added in order.
// Needs     compute capability 8.0; k % 64 == 0, aligned x and w (plan/linear_4bit.h).
#include "cuda/kernels/linear_4bit/row_tile.cuh"

namespace bnb::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp, kRowWarps = 4;
constexpr int kRun = static_cast<int>(kLinear4BitRun), kStep = static_cast<int>(kLinear4BitTileStep);
constexpr int kColumns = static_cast<int>(kLinear4BitTileOutputs);
static_assert(kRowWarps * kLinear4BitRows == kLinear4BitTileOutputs && kStep == 2 * kRun);

struct TileArgs {
  const void* x;
  WeightView w;
  ProductOut out;
  int64_t m, k;
  float* partials;  // [tiles, splits, threads' sums], or null for one split
  int32_t* counters;
  int32_t splits;
};

// Half: blocks of 32.
template <class T, int Tokens, bool Wide, bool Half>
class Tile {
 public:
  using Table = HalfPairs<T, Wide>;
  static constexpr int kEights = Tokens / 8, kHalf = kEights / 2;
  static constexpr int kStages = Tokens == 64 ? 4 : Wide ? 3 : 2, kStage = Tokens * kStep * 2;
  static constexpr int kSums = 2 * kHalf * 4;  // of a thread, in the end
  static constexpr int kExchange = kThreads * kSums * 4;
  static_assert(kExchange <= kStages * kStage && kExchange == Tokens * kColumns * 4);

  __device__ __forceinline__ Tile(const TileArgs& a, unsigned char* shared)
      : a_(a),
        table_(shared),
        codes_(reinterpret_cast<float*>(shared + Table::kBytes)),
        ring_(shared + Table::kBytes + kLinear4BitNestedCode) {}

  __device__ __forceinline__ void run() {
    runs_ = static_cast<int>(a_.k / kRun);
    column0_ = static_cast<int>(blockIdx.y / static_cast<unsigned>(a_.splits)) * kColumns;
    rows_ = static_cast<int>(a_.m - token0() < Tokens ? a_.m - token0() : Tokens);
    const int all = static_cast<int>(ceil_div(a_.k, kStep));
    const int from = part_of(all, split(), a_.splits), to = part_of(all, split() + 1, a_.splits);

    Run<Half> run;
    load(run, from);
#pragma unroll
    for (int i = 0; i < kStages - 1; i++) {
      if (from + i < to) copy(i, from + i);
      cp_async_commit();
    }
    Table::load(table_, a_.w.type);
    a_.w.load_nested_code(codes_);
    offset_ = a_.w.offset();

    float acc[2][kEights][4] = {};
    int stage = 0;
#pragma unroll 1
    for (int step = from; step < to; step++) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage has arrived for all, and all have left the one that is filled now
      const int ahead = step + kStages - 1;
      if (ahead < to) copy(stage == 0 ? kStages - 1 : stage - 1, ahead);
      cp_async_commit();
      multiply(acc, run, ring_ + stage * kStage, step + 1, to);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    finish(acc);
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  // Blocks side by side share rows of w.
  static __device__ __forceinline__ int64_t token0() { return int64_t{blockIdx.x} * Tokens; }
  __device__ __forceinline__ int split() const {
    return static_cast<int>(blockIdx.y % static_cast<unsigned>(a_.splits));
  }
  static __device__ __forceinline__ int half() { return warp() / kRowWarps; }

  // The last step may have one run only: then the other is zero, and so is x there. Where the rows are is computed for
  // each step: registers are short.
  __device__ __forceinline__ void load(Run<Half>& r, int step) const {
    const int run = 2 * step + half();
    if (run >= runs_) {
      r = {};
      return;
    }
    RowTile<Half> tile;
    tile.go_to(a_.w, a_.out.n, a_.k, column0_ + warp() % kRowWarps * kLinear4BitRows, run);
    tile.load(a_.w, r, 0);
  }

  // Fragments are pieces 2t and 2t + 1 of a run, or t and 4 + t for blocks of 32: what odd rows swap keeps the eight
  // lanes that load together apart.
  __device__ __forceinline__ int swapped(int row, int piece) const {
    return row % 2 == 0 ? piece : piece ^ (Half ? 4 : 1);
  }

  // Step `step` of x; zeros beyond its rows and columns. A thread copies the same piece of every 16th row.
  __device__ __forceinline__ void copy(int stage, int step) const {
    constexpr int kPieces = kStep / 8, kApart = kThreads / kPieces;
    const int row = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    const int64_t k = int64_t{step} * kStep + piece * 8;
    const int rows = k < a_.k ? rows_ - row : 0;
    const T* from = static_cast<const T*>(a_.x) + (token0() + row) * a_.k + k;
    unsigned char* to = ring_ + stage * kStage + (row * kPieces + swapped(row, piece)) * 16;
    static_assert(kApart % 2 == 0);
#pragma unroll
    for (int i = 0; i < Tokens; i += kApart, from += kApart * a_.k) cp_async16(to + i * kPieces * 16, from, i < rows);
  }

  // acc += a run of w times that of x. `run` becomes that of step `next`.
  __device__ __forceinline__ void multiply(float (&acc)[2][kEights][4], Run<Half>& run, const unsigned char* stage,
                                           int next, int to) const {
    const uint32_t bits = Table::lane_bits(lane());
    uint32_t a[2][4][4];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int j = 0; j < 4; j++) fragment<Table>(a[r][j], table_, run, r, j, bits);
    float s[4], second[4];
    row_scales(s, a_.w, run, 0, codes_, offset_);
    if constexpr (Half) row_scales(second, a_.w, run, 1, codes_, offset_);
    // Rows 8e + g are odd or even as g is.
    const int g = lane() / 4, piece = lane() % 4 * (Half ? 1 : 2), gap = Half ? 4 : 1;
    const unsigned char* first = stage + (g * (kStep / 8) + half() * (kRun / 8)) * 16;
    const unsigned char* low_at = first + swapped(g, piece) * 16;
    const unsigned char* high_at = first + swapped(g, piece + gap) * 16;
    // `run` is decoded; its registers are free for the next one.
    if (next < to) load(run, next);
#pragma unroll
    for (int e = 0; e < kEights; e++) {
      // Rows that do not exist are skipped, and the branches keep the compiler from mixing more of these steps than it
      // has registers for.
      if (e % 2 == 0 && 8 * e >= rows_) break;
      const Vec<uint32_t, 4> low = load_shared_in_order(low_at + e * 8 * kStep * 2);
      const Vec<uint32_t, 4> high = load_shared_in_order(high_at + e * 8 * kStep * 2);
      const uint32_t b[4][2] = {
          {low.v[0], low.v[1]}, {low.v[2], low.v[3]}, {high.v[0], high.v[1]}, {high.v[2], high.v[3]}};
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float c[4];
        mma_m16n8k16_first<T>(c, a[r][0], b[0]);
        mma_m16n8k16<T>(c, a[r][1], b[1]);
        if constexpr (Half) {
          add_scaled(acc[r][e], c, s[2 * r], s[2 * r + 1]);
          mma_m16n8k16_first<T>(c, a[r][2], b[2]);
        } else {
          mma_m16n8k16<T>(c, a[r][2], b[2]);
        }
        mma_m16n8k16<T>(c, a[r][3], b[3]);
        if constexpr (Half)
          add_scaled(acc[r][e], c, second[2 * r], second[2 * r + 1]);
        else
          add_scaled(acc[r][e], c, s[2 * r], s[2 * r + 1]);
      }
    }
  }

  // The two warps of the same rows take half of the rows of x each; then the blocks of the same tile meet.
  __device__ __forceinline__ void finish(const float (&acc)[2][kEights][4]) const {
    const bool upper = half() == 1;
    float* exchange = reinterpret_cast<float*>(ring_);
    const int other = static_cast<int>(threadIdx.x) ^ (kRowWarps * kWarp);
    float sums[kSums];
    __syncthreads();  // all have left the ring
#pragma unroll
    for (int e = 0; e < kHalf; e++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        Vec<float, 4> away;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          away.v[i] = upper ? acc[r][e][i] : acc[r][kHalf + e][i];
          sums[(e * 2 + r) * 4 + i] = upper ? acc[r][kHalf + e][i] : acc[r][e][i];
        }
        store_vec(exchange + ((e * 2 + r) * kThreads + other) * 4, away);
      }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kSums / 4; j++) {
      const Vec<float, 4> more = load_vec<4>(exchange + (j * kThreads + static_cast<int>(threadIdx.x)) * 4);
#pragma unroll
      for (int i = 0; i < 4; i++) sums[j * 4 + i] += more.v[i];
    }
    if (a_.splits > 1) {
      const int64_t tile = int64_t{blockIdx.y / static_cast<unsigned>(a_.splits)} * gridDim.x + blockIdx.x;
      if (!add_splits<kSums, kThreads>(sums, a_.partials, a_.counters, tile, split(), a_.splits)) return;
    }
    // Out in whole rows: [Tokens][128] in shared memory, eights of columns swapped by the row to keep banks apart.
    const int g = lane() / 4, t = lane() % 4, mine = warp() % kRowWarps * static_cast<int>(kLinear4BitRows) + g;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kHalf; e++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int row = (e + (upper ? kHalf : 0)) * 8 + 2 * t + i % 2, column = mine + i / 2 * 8;
        exchange[row * kColumns + (column ^ t * 8)] = sums[(e * 2 + i / 4) * 4 + i / 2 % 2 * 2 + i % 2];
      }
    __syncthreads();
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < Tokens * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const int64_t y_row = token0() + row, y_column = column0_ + column;
      if (y_row < a_.m && y_column < a_.out.n)
        a_.out.store(y_row, y_column, exchange[row * kColumns + (column ^ row / 2 % 4 * 8)]);
    }
  }

  const TileArgs& a_;
  unsigned char* table_;
  float* codes_;
  unsigned char* ring_;
  float offset_ = 0;
  int runs_ = 0, rows_ = 0, column0_ = 0;  // runs of k; rows of x in this tile, and its first row of w
};

template <class T, int Tokens, bool Wide, bool Half>
__global__ void __launch_bounds__(kThreads, 1) tile_kernel(TileArgs a) {
  BNB_DYNAMIC_SHARED(shared);
  if constexpr (kSm80) Tile<T, Tokens, Wide, Half>(a, shared).run();
}

}  // namespace

void linear_4bit_tile(const Linear4BitArgs& a, const Linear4BitGpuPlan& plan, CudaStream& s) {
  const int64_t tiles_m = ceil_div(a.m, plan.tokens), tiles = tiles_m * ceil_div(a.n, kLinear4BitTileOutputs);
  float* partials = nullptr;
  if (plan.splits > 1)
    partials = static_cast<float*>(
        s.scratch(static_cast<size_t>(tiles * plan.splits * kLinear4BitTileOutputs * plan.tokens) * sizeof(float)));
  const TileArgs args = {a.x,        view_of(a.w), {a.y, a.bias, a.n, a.y_dtype, a.bias_dtype, a.residual},
                         a.m,        a.k,          partials,
                         s.counters, plan.splits};
  const dim3 grid(static_cast<unsigned>(tiles_m), static_cast<unsigned>(plan.blocks / tiles_m));
  const auto go = [&](auto kernel) {
    launch(s, kernel, grid, dim3(kThreads), static_cast<size_t>(plan.shared_bytes), args);
  };
  // Blocks of 32 want too many registers for 128 rows of x.
  const auto tokens = [&]<class T, bool Wide>() {
    if (a.w.blocksize < kRun)
      go(tile_kernel<T, 64, Wide, true>);
    else
      go(plan.tokens == 64 ? tile_kernel<T, 64, Wide, false> : tile_kernel<T, 128, Wide, false>);
  };
  const auto type = [&]<class T>() {
    plan.wide_table ? tokens.template operator()<T, true>() : tokens.template operator()<T, false>();
  };
  a.dtype == DType::float16 ? type.template operator()<f16>() : type.template operator()<bf16>();
}

}  // namespace bnb::cuda
