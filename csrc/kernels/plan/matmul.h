// Which kernel multiplies matrices on a GPU, and with which tile: a pure function of the problem and the card.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/gpu.h"

namespace bnb {

// The numbers cross to JavaScript; so do those of MatmulTile.
enum class MatmulVariant : int32_t { simt, mma, cublaslt };
// rows: one warp per column of c. skinny, small, large: tiles of c.
enum class MatmulTile : int32_t { none, rows, skinny, small, large };

struct MatmulProblem {
  int64_t batch, m, n, k;
  DType dtype_a, dtype_b, dtype_c;
  bool transpose_a, transpose_b;
  bool accumulate, bias;
  bool aligned;  // rows and matrices of a and b start at multiples of 16 bytes
};

struct MatmulPlan {
  bool possible;
  MatmulVariant variant;
  MatmulTile tile;
  int64_t blocks;        // of the grid
  int64_t shared_bytes;  // per block
};

// The tiles that the kernels are compiled for; each stage holds k terms of m rows of a and n columns of b.
struct MatmulTileShape {
  int32_t m, n, k, stages;
  constexpr int64_t shared_bytes(int64_t element) const { return int64_t{stages} * (m + n) * k * element; }
};
inline constexpr MatmulTileShape kMmaSkinny = {16, 32, 128, 4};
inline constexpr MatmulTileShape kMmaSmall = {64, 64, 64, 3};
inline constexpr MatmulTileShape kMmaLarge = {128, 128, 32, 4};
inline constexpr MatmulTileShape kSimtSmall = {64, 64, 16, 2};
inline constexpr MatmulTileShape kSimtLarge = {128, 128, 8, 2};

constexpr int64_t kMatmulRows = 8;                        // rows of c up to which `rows` streams b
constexpr int64_t kMatmulSkinnyRows = 16;                 // and up to which `skinny` does
constexpr int64_t kMatmulLibraryWork = int64_t{1} << 24;  // [e] multiply-adds from which cuBLASLt pays
constexpr int64_t kMatmulRowsPerBlock = 8;                // columns of a block of `rows`: its warps
constexpr int64_t kMatmulRowGroup = 4;                    // rows that one warp of `rows` takes

constexpr bool is_half(DType t) { return t == DType::float16 || t == DType::bfloat16; }

// The Needs lines of the kernels.
constexpr bool can_multiply(MatmulVariant variant, const MatmulProblem& p, const GpuInfo& gpu) {
  const bool halves = is_half(p.dtype_a) && p.dtype_a == p.dtype_b;
  switch (variant) {
    case MatmulVariant::simt: return true;
    case MatmulVariant::mma: return halves && p.aligned && gpu.cc >= (p.dtype_a == DType::float16 ? 75 : 80);
    // Products of 16-bit types with a result of the same type, whose rows are aligned too.
    case MatmulVariant::cublaslt:
      return gpu.has_cublaslt && halves && p.aligned && p.k > 0 && p.dtype_c == p.dtype_a && p.k % 8 == 0 &&
             p.n % 8 == 0 && (!p.transpose_a || p.m % 8 == 0) && gpu.cc >= (p.dtype_a == DType::float16 ? 75 : 80);
  }
  return false;
}

constexpr MatmulPlan plan_with(MatmulVariant variant, const MatmulProblem& p, const GpuInfo& gpu) {
  if (!can_multiply(variant, p, gpu)) return {false, variant, MatmulTile::none, 0, 0};
  if (variant == MatmulVariant::cublaslt) return {true, variant, MatmulTile::none, 0, 0};
  const auto tiles = [&](const MatmulTileShape& t) {
    return p.batch * ((p.m + t.m - 1) / t.m) * ((p.n + t.n - 1) / t.n);
  };
  const auto with = [&](MatmulTile tile, const MatmulTileShape& shape) {
    return MatmulPlan{true, variant, tile, tiles(shape), shape.shared_bytes(variant == MatmulVariant::mma ? 2 : 4)};
  };
  const bool streams_b = !p.transpose_a && p.transpose_b;
  if (variant == MatmulVariant::mma) {
    if (streams_b && p.m <= kMatmulSkinnyRows) return with(MatmulTile::skinny, kMmaSkinny);
    if (tiles(kMmaLarge) >= gpu.sms) return with(MatmulTile::large, kMmaLarge);
    return with(MatmulTile::small, kMmaSmall);
  }
  if (streams_b && p.m <= kMatmulRows && p.dtype_a == p.dtype_b) {
    const int64_t groups = (p.m + kMatmulRowGroup - 1) / kMatmulRowGroup;
    const int64_t columns = (p.n + kMatmulRowsPerBlock - 1) / kMatmulRowsPerBlock;
    return {true, variant, MatmulTile::rows, p.batch * columns * groups, 0};
  }
  if (tiles(kSimtLarge) >= gpu.sms) return with(MatmulTile::large, kSimtLarge);
  return with(MatmulTile::small, kSimtSmall);
}

constexpr MatmulPlan plan_matmul(const MatmulProblem& p, const GpuInfo& gpu) {
  const bool large = p.batch * p.m * p.n >= (kMatmulLibraryWork + p.k - 1) / (p.k > 0 ? p.k : 1);
  if (large && can_multiply(MatmulVariant::cublaslt, p, gpu)) return plan_with(MatmulVariant::cublaslt, p, gpu);
  if (can_multiply(MatmulVariant::mma, p, gpu)) return plan_with(MatmulVariant::mma, p, gpu);
  return plan_with(MatmulVariant::simt, p, gpu);
}

}  // namespace bnb
