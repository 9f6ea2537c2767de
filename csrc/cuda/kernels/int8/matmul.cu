// c = a b^T in exact integer arithmetic.
//
// Layout    a [m, k] and b [n, k] int8, c [m, n] int32.
// Work      tiles of 128 x 128, 64 x 64, or 16 x 32 for up to 16 rows, as in matmul/mma_sm80.cu: one step of the
//           matrix unit takes 32 codes of 16 rows and 8 columns.
// Numerics  int32 sums, exact for every int8 value while k <= 131071.
// Needs     nothing: rows that do not start at multiples of 16 bytes are gathered byte by byte, in tiles of 64 x 64.
#include "cuda/kernels/int8/tile.cuh"
#include "kernels/int8.h"

namespace bnb::cuda {
namespace {

template <class T, bool Aligned>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    int8_matmul_kernel(CodeSource<Aligned> a, CodeSource<Aligned> b, int32_t* c, int64_t tiles_m, int64_t tiles_n) {
  BNB_DYNAMIC_SHARED(shared);
  const TilePlace place = tile_place(blockIdx.x, tiles_m, tiles_n);
  const int64_t m0 = place.row * T::kM, n0 = place.col * T::kN;
  int32_t sums[T::kRows][T::kCols][4];
  clear<T>(sums);
  multiply_codes<T>(shared, a, b, m0, n0, 0, a.cols, sums);
  emit_tile<T>(shared, sums, [&](int row, int col, const int32_t(&pair)[2]) {
    if (m0 + row >= a.rows) return;
    int32_t* to = c + (m0 + row) * b.rows + n0 + col;
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (n0 + col + i < b.rows) to[i] = pair[i];
  });
}

}  // namespace

void int8_matmul(const Int8MatmulArgs& x, CudaStream& s) {
  if (x.m == 0 || x.n == 0) return;
  with_code_tile(
      x.m, x.n, codes_aligned(x.a, x.b, x.k), s, [&]<class T, bool Aligned>(int64_t tiles_m, int64_t tiles_n) {
        launch(s, int8_matmul_kernel<T, Aligned>, grid_of(tiles_m * tiles_n), dim3(T::kThreads), T::kStages * T::kStage,
               CodeSource<Aligned>{x.a, x.m, x.k}, CodeSource<Aligned>{x.b, x.n, x.k}, x.c, tiles_m, tiles_n);
      });
}

}  // namespace bnb::cuda
