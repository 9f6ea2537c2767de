// A tile of c on the matrix units: 16-byte pieces of a and b go through a ring of stages in shared memory, fragments
// come from there by ldmatrix. An element here has 16 bits: a half float, or two int8.
#pragma once
#include "cuda/kernels/matmul/output.cuh"
#include "cuda/ptx.cuh"
#include "kernels/plan/matmul.h"

namespace bnb::cuda {

// Warps stand in WarpsM x WarpsN places of the tile; WarpsK of them share a place and split the terms of a stage.
template <const MatmulTileShape& Shape, int WarpsM, int WarpsN, int WarpsK>
struct MmaTile {
  static constexpr int kM = Shape.m, kN = Shape.n, kK = Shape.k, kStages = Shape.stages;
  static constexpr int kWarpsN = WarpsN, kWarpsK = WarpsK, kThreads = 32 * WarpsM * WarpsN * WarpsK;
  static constexpr int kWarpM = kM / WarpsM, kWarpN = kN / WarpsN;  // of one warp
  static constexpr int kRows = kWarpM / 16, kCols = kWarpN / 8;     // products of one warp
  // Blocks that share a multiprocessor: compute capability 7.5 has shared memory for one.
  static constexpr int kBlocks = kSm80 ? 2 : 1;
  static constexpr int kBytesA = kM * kK * 2, kStage = (kM + kN) * kK * 2;
  static_assert(kCols % 2 == 0 && kK % (16 * WarpsK) == 0);
  static_assert(WarpsK == 1 || WarpsK * kM * kN * 4 <= kStages * kStage);
};
using SkinnyTile = MmaTile<kMmaSkinny, 1, 1, 8>;
using SmallTile = MmaTile<kMmaSmall, 2, 2, 1>;
using LargeTile = MmaTile<kMmaLarge, 2, 4, 1>;

// A row-major matrix of 16-bit elements whose rows start at multiples of 16 bytes.
struct HalfSource {
  const uint16_t* data;
  int64_t rows, cols;

  __device__ __forceinline__ void copy(unsigned char* to, int64_t row, int64_t col) const {
    const bool valid = row < rows && col < cols;
    cp_async16(to, data + (valid ? row * cols + col : 0), valid);
  }
};

// Where piece `piece` of row `row` lies: permuted so that eight rows of the same piece meet no bank twice.
template <int Pieces>
__device__ __forceinline__ int piece_offset(int row, int piece) {
  static_assert(Pieces == 4 || Pieces % 8 == 0);
  return (row * Pieces + (piece ^ (Pieces == 4 ? row >> 1 & 3 : row & 7))) * 16;
}

template <int Rows, int Cols, int Threads, class Source>
__device__ __forceinline__ void copy_tile(unsigned char* to, const Source& from, int64_t row0, int64_t col0) {
  constexpr int kPieces = Cols / 8;
  static_assert(Rows * kPieces % Threads == 0);
#pragma unroll
  for (int i = 0; i < Rows * kPieces / Threads; i++) {
    const int at = i * Threads + static_cast<int>(threadIdx.x), row = at / kPieces, piece = at % kPieces;
    from.copy(to + piece_offset<kPieces>(row, piece), row0 + row, col0 + piece * 8);
  }
}

// The fragment of 16 rows of a from m, 16 terms from k. Along: rows of the tile are rows of a, else they are terms.
template <bool Along, int Cols>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const unsigned char* tile, int m, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (Along)
    ldmatrix_x4(a, tile + piece_offset<Cols / 8>(m + lane % 16, k / 8 + lane / 16));
  else
    ldmatrix_x4<true>(a, tile + piece_offset<Cols / 8>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
}

// The fragments of two times 8 columns of b from n: b[0], b[1] and b[2], b[3].
template <bool Along, int Cols>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const unsigned char* tile, int n, int k) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (Along)
    ldmatrix_x4(b, tile + piece_offset<Cols / 8>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
  else
    ldmatrix_x4<true>(b, tile + piece_offset<Cols / 8>(k + lane % 16, n / 8 + lane / 16));
}

struct WarpPlace {
  int m, n, k;  // first row and column of the warp's part of the tile, first term of a stage
};
template <class T>
__device__ __forceinline__ WarpPlace warp_place() {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, place = warp / T::kWarpsK;
  return {place / T::kWarpsN * T::kWarpM, place % T::kWarpsN * T::kWarpN, warp % T::kWarpsK * 16};
}

// One stage: multiply(sums of a product, a, b) for every product of this warp.
template <class T, bool AlongA, bool AlongB, class Sum, class Multiply>
__device__ __forceinline__ void multiply_stage(const unsigned char* tile_a, const unsigned char* tile_b,
                                               Sum (&sums)[T::kRows][T::kCols][4], const Multiply& multiply) {
  const WarpPlace at = warp_place<T>();
#pragma unroll
  for (int step = 0; step < T::kK; step += 16 * T::kWarpsK) {
    uint32_t a[T::kRows][4], b[T::kCols / 2][4];
#pragma unroll
    for (int i = 0; i < T::kRows; i++) load_a<AlongA, AlongA ? T::kK : T::kM>(a[i], tile_a, at.m + 16 * i, step + at.k);
#pragma unroll
    for (int j = 0; j < T::kCols / 2; j++)
      load_b<AlongB, AlongB ? T::kK : T::kN>(b[j], tile_b, at.n + 16 * j, step + at.k);
#pragma unroll
    for (int i = 0; i < T::kRows; i++) {
#pragma unroll
      for (int j = 0; j < T::kCols; j++) {
        const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        multiply(sums[i][j], a[i], pair);
      }
    }
  }
}

// sums += a[m0.., from..to] * b[n0.., from..to]; from is a multiple of kK, and so is `to` where it is not the end.
template <class T, bool AlongA, bool AlongB, class A, class B, class Sum, class Multiply>
__device__ __forceinline__ void multiply_tile(unsigned char* shared, const A& a, const B& b, int64_t m0, int64_t n0,
                                              int64_t from, int64_t to, Sum (&sums)[T::kRows][T::kCols][4],
                                              const Multiply& multiply) {
  const auto copy_stage = [&](int stage, int64_t k) {
    unsigned char* at = shared + stage * T::kStage;
    copy_tile<AlongA ? T::kM : T::kK, AlongA ? T::kK : T::kM, T::kThreads>(at, a, AlongA ? m0 : k, AlongA ? k : m0);
    copy_tile<AlongB ? T::kN : T::kK, AlongB ? T::kK : T::kN, T::kThreads>(at + T::kBytesA, b, AlongB ? n0 : k,
                                                                           AlongB ? k : n0);
  };
  int64_t next = from;
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; stage++, next += T::kK) {
    if (next < to) copy_stage(stage, next);
    cp_async_commit();
  }
  int stage = 0;
  for (int64_t k = from; k < to; k += T::kK, next += T::kK) {
    cp_async_wait<T::kStages - 2>();
    __syncthreads();  // the stage has arrived for all, and all have left the one that is filled now
    if (next < to) copy_stage(stage == 0 ? T::kStages - 1 : stage - 1, next);
    cp_async_commit();
    const unsigned char* at = shared + stage * T::kStage;
    multiply_stage<T, AlongA, AlongB>(at, at + T::kBytesA, sums, multiply);
    stage = stage == T::kStages - 1 ? 0 : stage + 1;
  }
  cp_async_wait<0>();
  __syncthreads();
}

template <class T, class Sum>
__device__ __forceinline__ void clear(Sum (&sums)[T::kRows][T::kCols][4]) {
#pragma unroll
  for (int i = 0; i < T::kRows; i++)
#pragma unroll
    for (int j = 0; j < T::kCols; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[i][j][e] = Sum{};
}

// emit(row, column, sums of that column and the next) for the whole tile. Warps that split the terms meet in shared
// memory, where their parts are added in order.
template <class T, class Sum, class Emit>
__device__ __forceinline__ void emit_tile(unsigned char* shared, const Sum (&sums)[T::kRows][T::kCols][4],
                                          const Emit& emit) {
  const WarpPlace at = warp_place<T>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Sum* parts = reinterpret_cast<Sum*>(shared);
#pragma unroll
  for (int i = 0; i < T::kRows; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = at.m + 16 * i + 8 * half + lane / 4;
#pragma unroll
      for (int j = 0; j < T::kCols; j++) {
        const int col = at.n + 8 * j + lane % 4 * 2;
        const Sum pair[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        if constexpr (T::kWarpsK == 1)
          emit(row, col, pair);
        else
          store_vec(parts + (at.k / 16 * T::kM + row) * T::kN + col, Vec<Sum, 2>{{pair[0], pair[1]}});
      }
    }
  }
  if constexpr (T::kWarpsK > 1) {
    __syncthreads();
    for (int i = 2 * static_cast<int>(threadIdx.x); i < T::kM * T::kN; i += 2 * T::kThreads) {
      Sum pair[2] = {};
#pragma unroll
      for (int part = 0; part < T::kWarpsK; part++) {
        const Vec<Sum, 2> v = load_vec<2>(parts + part * T::kM * T::kN + i);
        pair[0] += v.v[0];
        pair[1] += v.v[1];
      }
      const Sum total[2] = {pair[0], pair[1]};
      emit(i / T::kN, i % T::kN, total);
    }
  }
}

}  // namespace bnb::cuda
