// A tile of c in float32: operands are widened on their way to shared memory, each thread keeps a block of sums in
// registers. Shared by products of any float types and by those with int8 weights.
#pragma once
#include "cuda/kernels/matmul/output.cuh"
#include "kernels/plan/matmul.h"

namespace bnb::cuda {

// An operand: row-major matrices, read at an index from the first of them; `term` is the term of the sum it is for.
// vectors: four neighbours may be loaded as one.
template <class T>
struct FloatOperand {
  const T* data;
  int64_t rows, cols, stride;  // stride: from one matrix of the batch to the next
  bool vectors;

  __device__ __forceinline__ float at(int64_t index, int64_t) const { return widen(data[index]); }
  __device__ __forceinline__ void four(int64_t index, int64_t, float (&x)[4]) const {
    const Vec<T, 4> v = load_vec<4>(data + index);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = widen(v.v[i]);
  }
};

// The same with a type that is known at run time.
struct AnyOperand {
  const void* data;
  int64_t rows, cols, stride;
  DType dtype;
  static constexpr bool vectors = false;

  __device__ __forceinline__ float at(int64_t index, int64_t) const { return load_float(data, index, dtype); }
  __device__ __forceinline__ void four(int64_t, int64_t, float (&)[4]) const {}
};

// `count` neighbours, then zeros up to four.
template <class X>
__device__ __forceinline__ void fetch_four(const X& x, int64_t index, int64_t term, int count, float (&out)[4]) {
  if (x.vectors && count == 4) {
    x.four(index, term, out);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) out[i] = i < count ? x.at(index + i, term) : 0.0f;
}

__device__ __forceinline__ int up_to_four(int64_t n) { return n >= 4 ? 4 : n > 0 ? static_cast<int>(n) : 0; }

template <int Tile>
struct SimtTile {
  static constexpr MatmulTileShape kShape = Tile == 128 ? kSimtLarge : kSimtSmall;
  static constexpr int kTile = Tile, kDepth = kShape.k, kThreads = 256;
  static constexpr int kPitch = Tile + 4;               // keeps rows of four aligned and spreads the banks
  static constexpr int kGroups = Tile / 64;             // groups of four rows, and of four columns, that a thread owns
  static constexpr int kUnroll = kGroups == 2 ? 2 : 8;  // terms; more of them spill 64 sums
  static_assert(kShape.m == Tile && kShape.n == Tile && Tile * kDepth == 4 * kThreads);
};

// The four elements of each tile of an operand that this thread brings. A lane is a row of a or a column of b.
template <class T>
struct Share {
  int64_t index;  // in the operand
  int lane, term;
  int lanes;  // that exist, of the four or one
  bool along;

  template <class X>
  __device__ __forceinline__ Share(const X& x, bool sum_contiguous, int64_t batch, int64_t lane0)
      : along(sum_contiguous) {
    const int t = static_cast<int>(threadIdx.x);
    lane = along ? t / (T::kDepth / 4) : t % (T::kTile / 4) * 4;
    term = along ? t % (T::kDepth / 4) * 4 : t / (T::kTile / 4);
    const int64_t at = lane0 + lane;
    lanes = up_to_four((along ? x.rows : x.cols) - at);
    index = batch * x.stride + (along ? at * x.cols + term : term * x.cols + at);
  }
  // To the tile of the next terms.
  template <class X>
  __device__ __forceinline__ void advance(const X& x) {
    index += along ? T::kDepth : T::kDepth * x.cols;
  }
  template <class X>
  __device__ __forceinline__ void fetch(const X& x, int64_t term0, int64_t k, float (&out)[4]) const {
    const int64_t at = term0 + term;
    const int count = along ? (lanes > 0 ? up_to_four(k - at) : 0) : (at < k ? lanes : 0);
    fetch_four(x, index, at, count, out);
  }
  __device__ __forceinline__ void put(float* tile, const float (&x)[4]) const {
    float* to = tile + term * T::kPitch + lane;
    if (along) {
#pragma unroll
      for (int i = 0; i < 4; i++) to[i * T::kPitch] = x[i];
    } else {
      store_vec(to, Vec<float, 4>{{x[0], x[1], x[2], x[3]}});
    }
  }
};

// c[m, n] tile by tile; a_along, b_along: the sum runs along the contiguous axis of that operand.
template <int Tile, class A, class B>
__global__ void __launch_bounds__(256, Tile == 128 ? 2 : 1)
    simt_tile_kernel(A a, bool a_along, B b, bool b_along, Output out, int64_t k, int64_t tiles_m, int64_t tiles_n) {
  using T = SimtTile<Tile>;
  BNB_SHARED(float[2 * T::kDepth * T::kPitch], tiles_a);
  BNB_SHARED(float[2 * T::kDepth * T::kPitch], tiles_b);
  const TilePlace place = tile_place(blockIdx.x, tiles_m, tiles_n);
  const int64_t m0 = place.row * Tile, n0 = place.col * Tile;
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;

  float sums[T::kGroups * 4][T::kGroups * 4];
#pragma unroll
  for (int i = 0; i < T::kGroups * 4; i++)
#pragma unroll
    for (int j = 0; j < T::kGroups * 4; j++) sums[i][j] = 0.0f;

  Share<T> share_a(a, a_along, place.batch, m0), share_b(b, b_along, place.batch, n0);
  float next_a[4], next_b[4];
  share_a.fetch(a, 0, k, next_a);
  share_b.fetch(b, 0, k, next_b);
  share_a.put(tiles_a, next_a);
  share_b.put(tiles_b, next_b);
  __syncthreads();
  int buffer = 0;
  for (int64_t k0 = 0; k0 < k; k0 += T::kDepth) {
    const bool more = k0 + T::kDepth < k;
    if (more) {
      share_a.advance(a);
      share_b.advance(b);
      share_a.fetch(a, k0 + T::kDepth, k, next_a);
      share_b.fetch(b, k0 + T::kDepth, k, next_b);
    }
    const float* from_a = tiles_a + buffer * T::kDepth * T::kPitch + 4 * ty;
    const float* from_b = tiles_b + buffer * T::kDepth * T::kPitch + 4 * tx;
#pragma unroll T::kUnroll
    for (int p = 0; p < T::kDepth; p++) {
      Vec<float, 4> x[T::kGroups], y[T::kGroups];
#pragma unroll
      for (int g = 0; g < T::kGroups; g++) {
        x[g] = load_vec<4>(from_a + p * T::kPitch + 64 * g);
        y[g] = load_vec<4>(from_b + p * T::kPitch + 64 * g);
      }
#pragma unroll
      for (int i = 0; i < T::kGroups * 4; i++)
#pragma unroll
        for (int j = 0; j < T::kGroups * 4; j++) sums[i][j] = fmaf(x[i / 4].v[i % 4], y[j / 4].v[j % 4], sums[i][j]);
    }
    if (more) {
      buffer ^= 1;
      share_a.put(tiles_a + buffer * T::kDepth * T::kPitch, next_a);
      share_b.put(tiles_b + buffer * T::kDepth * T::kPitch, next_b);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < T::kGroups * 4; i++) {
#pragma unroll
    for (int g = 0; g < T::kGroups; g++) {
      const float four[4] = {sums[i][4 * g], sums[i][4 * g + 1], sums[i][4 * g + 2], sums[i][4 * g + 3]};
      out.put<4>(place.batch, m0 + i / 4 * 64 + 4 * ty + i % 4, n0 + 64 * g + 4 * tx, four);
    }
  }
}

template <class A, class B>
void launch_simt_tiles(MatmulTile tile, const A& a, bool a_along, const B& b, bool b_along, const Output& out,
                       int64_t k, int64_t blocks, CudaStream& s) {
  const auto with = [&](auto kernel, int64_t side) {
    launch(s, kernel, grid_of(blocks), dim3(256), 0, a, a_along, b, b_along, out, k, ceil_div(out.m, side),
           ceil_div(out.n, side));
  };
  if (tile == MatmulTile::large)
    with(simt_tile_kernel<128, A, B>, 128);
  else
    with(simt_tile_kernel<64, A, B>, 64);
}

}  // namespace bnb::cuda
