// dx = dy @ (weight_codes * weight_stats / 127), the sum running over the rows of the weight.
//
// Layout    dy [m, n] and dx [m, k] of one float type, codes [n, k] int8.
// Work      16-bit types: tiles of 128 x 128 or 64 x 64 on the tensor cores; a ring of stages in shared memory brings
//           dy and the codes, and each stage of codes is decoded to the type of dy before its products. Otherwise tiles
//           of 64 x 64 as in matmul/simt.cu, decoded as they are loaded.
// Numerics  the weight is fl(code * fl(stat / 127)), on the tensor cores rounded once to the type of dy; sums in
//           float32, one rounding to the type of dx.
// Needs     tensor cores: n % 8 == 0, k % 16 == 0, both at multiples of 16 bytes, compute capability 8.0, for float16
//           7.5; everything else is computed in float32.
#include "cuda/kernels/int8/tile.cuh"
#include "cuda/kernels/matmul/simt_tile.cuh"
#include "kernels/int8.h"

namespace bnb::cuda {
namespace {

constexpr float kInv127 = 0x1.020408p-7f;

struct ScaledCodes {
  const int8_t* codes;
  const float* stats;
  int64_t rows, cols, stride;
  static constexpr bool vectors = false;

  __device__ __forceinline__ float at(int64_t index, int64_t term) const {
    return static_cast<float>(codes[index]) * (stats[term] * kInv127);
  }
  __device__ __forceinline__ void four(int64_t, int64_t, float (&)[4]) const {}
};

// Bytes of one stage, and of all with the decoded codes behind them.
template <class T>
constexpr int kStageBytes = T::kBytesA + T::kK * T::kN;
template <class T>
constexpr int kSharedBytes = T::kStages * kStageBytes<T> + T::kK * T::kN * 2;

template <class E, class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    int8_backward_kernel(HalfSource dy, CodeSource<true> codes, const float* stats, Output out, int64_t tiles_m,
                         int64_t tiles_k) {
  if (!kHasMma<E>) return;
  BNB_DYNAMIC_SHARED(shared);
  const TilePlace place = tile_place(blockIdx.x, tiles_m, tiles_k);
  const int64_t m0 = place.row * T::kM, k0 = place.col * T::kN, terms = codes.rows;
  // Pieces of 16 codes: of a row of the tile, of the tile, of this thread.
  constexpr int kPieces = T::kN / 16, kOwn = T::kK * kPieces / T::kThreads;
  static_assert(kOwn * T::kThreads == T::kK * kPieces);
  unsigned char* decoded = shared + T::kStages * kStageBytes<T>;

  const auto copy_stage = [&](int stage, int64_t term) {
    unsigned char* at = shared + stage * kStageBytes<T>;
    copy_tile<T::kM, T::kK, T::kThreads>(at, dy, m0, term);
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = i * T::kThreads + static_cast<int>(threadIdx.x);
      codes.copy(at + T::kBytesA + 16 * piece, term + piece / kPieces, (k0 + piece % kPieces * 16) / 2);
    }
  };
  // The pieces that this thread has copied itself.
  const auto decode_stage = [&](int stage, int64_t term) {
    const auto* from = reinterpret_cast<const int8_t*>(shared + stage * kStageBytes<T> + T::kBytesA);
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = i * T::kThreads + static_cast<int>(threadIdx.x), row = piece / kPieces;
      const float scale = term + row < terms ? stats[term + row] * kInv127 : 0.0f;
      const Vec<int8_t, 16> q = load_vec<16>(from + 16 * piece);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        Vec<E, 8> w;
#pragma unroll
        for (int e = 0; e < 8; e++) w.v[e] = narrow<E>(static_cast<float>(q.v[8 * half + e]) * scale);
        store_vec(reinterpret_cast<E*>(decoded + piece_offset<T::kN / 8>(row, piece % kPieces * 2 + half)), w);
      }
    }
  };

  float sums[T::kRows][T::kCols][4];
  clear<T>(sums);
  int64_t next = 0;
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; stage++, next += T::kK) {
    if (next < terms) copy_stage(stage, next);
    cp_async_commit();
  }
  int stage = 0;
  for (int64_t term = 0; term < terms; term += T::kK, next += T::kK) {
    cp_async_wait<T::kStages - 2>();
    __syncthreads();  // all have left the decoded codes and the stage that is filled now
    if (next < terms) copy_stage(stage == 0 ? T::kStages - 1 : stage - 1, next);
    cp_async_commit();
    decode_stage(stage, term);
    __syncthreads();
    multiply_stage<T, true, false>(
        shared + stage * kStageBytes<T>, decoded, sums,
        [](float(&d)[4], const uint32_t(&x)[4], const uint32_t(&y)[2]) { mma_m16n8k16<E>(d, x, y); });
    stage = stage == T::kStages - 1 ? 0 : stage + 1;
  }
  emit_tile<T>(shared, sums, [&](int row, int col, const float(&pair)[2]) { out.put<2>(0, m0 + row, k0 + col, pair); });
}

template <class E, class T>
void run(const Int8LinearBackwardArgs& a, const Output& out, CudaStream& s) {
  const int64_t tiles_m = ceil_div(a.m, T::kM), tiles_k = ceil_div(a.k, T::kN);
  launch(s, int8_backward_kernel<E, T>, grid_of(tiles_m * tiles_k), dim3(T::kThreads), kSharedBytes<T>,
         HalfSource{static_cast<const uint16_t*>(a.dy), a.m, a.n}, CodeSource<true>{a.weight_codes, a.n, a.k},
         a.weight_stats, out, tiles_m, tiles_k);
}

}  // namespace

void int8_linear_backward(const Int8LinearBackwardArgs& a, CudaStream& s) {
  if (a.m == 0 || a.k == 0) return;
  const bool is_float32 = a.dtype == DType::float32;
  const Output out = {a.dx, nullptr, a.m, a.k, a.dtype, false, a.k % 4 == 0 && aligned_for(is_float32 ? 16 : 8, a.dx),
                      a.k};
  const bool large = ceil_div(a.m, LargeTile::kM) * ceil_div(a.k, LargeTile::kN) >= s.gpu.sms;
  visit_float(a.dtype, [&](auto t) {
    using E = decltype(t);
    if constexpr (sizeof(E) == 2) {
      const bool fits = a.n % 8 == 0 && a.k % 16 == 0 && aligned_for(16, a.dy, a.weight_codes);
      if (fits && s.gpu.cc >= (a.dtype == DType::float16 ? 75 : 80))
        return large ? run<E, LargeTile>(a, out, s) : run<E, SmallTile>(a, out, s);
    }
    const FloatOperand<E> dy = {static_cast<const E*>(a.dy), a.m, a.n, 0,
                                a.n % 4 == 0 && aligned_for(4 * sizeof(E), a.dy)};
    const ScaledCodes weight = {a.weight_codes, a.weight_stats, a.n, a.k, 0};
    const int64_t tiles_m = ceil_div(a.m, SimtTile<64>::kTile), tiles_k = ceil_div(a.k, SimtTile<64>::kTile);
    launch(s, simt_tile_kernel<64, FloatOperand<E>, ScaledCodes>, grid_of(tiles_m * tiles_k),
           dim3(SimtTile<64>::kThreads), 0, dy, true, weight, false, out, a.n, tiles_m, tiles_k);
  });
}

}  // namespace bnb::cuda
