// c = a * b (+ bias) (+ c) on the tensor cores, a and b both float16 or both bfloat16.
//
// Layout    a is [m, k] or [k, m], b [k, n] or [n, k]; whichever axis is contiguous is also contiguous in shared
//           memory, in pieces of 16 bytes that are permuted within groups of eight rows, so that neither the copies
//           nor ldmatrix, plain or transposed, meet a bank twice.
// Work      a ring of three or four stages filled by cp.async. large: 128 x 128 of c, eight warps of 64 x 32. small:
//           64 x 64, four warps of 32 x 32. skinny, for up to 16 rows against b [n, k]: 16 x 32, eight warps that
//           split the terms of a stage of 128, so that a weight of 4096 rows keeps 128 blocks busy.
// Numerics  products are exact, their sums those of the matrix unit in float32, in order of k; parts of split terms
//           are added in order. bias and c join in float32; one rounding to the type of c.
// Needs     rows and matrices that start at multiples of 16 bytes; compute capability 8.0, for float16 7.5.
#include "cuda/kernels/matmul/matmul.h"
#include "cuda/kernels/matmul/mma_tile.cuh"

namespace bnb::cuda {
namespace {

template <class E, class T, bool AlongA, bool AlongB>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    mma_kernel(HalfSource a, int64_t stride_a, HalfSource b, int64_t stride_b, Output out, int64_t k, int64_t tiles_m,
               int64_t tiles_n) {
  if (!kHasMma<E>) return;
  BNB_DYNAMIC_SHARED(shared);
  const TilePlace place = tile_place(blockIdx.x, tiles_m, tiles_n);
  a.data += place.batch * stride_a;
  b.data += place.batch * stride_b;
  const int64_t m0 = place.row * T::kM, n0 = place.col * T::kN;
  float sums[T::kRows][T::kCols][4];
  clear<T>(sums);
  multiply_tile<T, AlongA, AlongB>(
      shared, a, b, m0, n0, 0, k, sums,
      [](float(&d)[4], const uint32_t(&x)[4], const uint32_t(&y)[2]) { mma_m16n8k16<E>(d, x, y); });
  emit_tile<T>(shared, sums,
               [&](int row, int col, const float(&pair)[2]) { out.put<2>(place.batch, m0 + row, n0 + col, pair); });
}

template <class E, class T, bool AlongA, bool AlongB>
void run(const MatmulArgs& x, const MatmulPlan& plan, CudaStream& s) {
  const HalfSource a = {static_cast<const uint16_t*>(x.a), AlongA ? x.m : x.k, AlongA ? x.k : x.m};
  const HalfSource b = {static_cast<const uint16_t*>(x.b), AlongB ? x.n : x.k, AlongB ? x.k : x.n};
  const Output out = output_of(x);
  launch(s, mma_kernel<E, T, AlongA, AlongB>, grid_of(plan.blocks), dim3(T::kThreads),
         static_cast<size_t>(plan.shared_bytes), a, x.stride_a, b, x.stride_b, out, x.k, ceil_div(x.m, T::kM),
         ceil_div(x.n, T::kN));
}

template <class E>
void run(const MatmulArgs& x, const MatmulPlan& plan, CudaStream& s) {
  if (plan.tile == MatmulTile::skinny) return run<E, SkinnyTile, true, true>(x, plan, s);
  const auto tiles = [&]<class T>() {
    if (x.transpose_a)
      x.transpose_b ? run<E, T, false, true>(x, plan, s) : run<E, T, false, false>(x, plan, s);
    else
      x.transpose_b ? run<E, T, true, true>(x, plan, s) : run<E, T, true, false>(x, plan, s);
  };
  plan.tile == MatmulTile::large ? tiles.template operator()<LargeTile>() : tiles.template operator()<SmallTile>();
}

}  // namespace

void matmul_mma(const MatmulArgs& x, const MatmulPlan& plan, CudaStream& s) {
  x.dtype_a == DType::float16 ? run<f16>(x, plan, s) : run<bf16>(x, plan, s);
}

}  // namespace bnb::cuda
