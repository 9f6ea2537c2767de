// y = codes @ weight_codes^T * scales + x[:, outliers] @ weight[:, outliers]^T + bias.
//
// Layout    codes [m, k] and weight_codes [n, k] int8, x [m, k] and weight [n, k] in their own types; the mask of
//           outlier columns [k] becomes their sorted positions in scratch memory, their number before them.
// Work      one block makes the list. Then one block per tile of y: the integer product as in int8/matmul.cu, and the
//           outlier columns, 32 at a time, through the shared memory that the product has left. How many there are is
//           known on the device only: nothing waits for it.
// Numerics  integer sums are exact: beyond 131072 terms they are added in float64, in tiles of 64 x 64. Rescaling,
//           outlier products (fmaf, in order of the columns) and bias in float32; one rounding to the type of y.
// Needs     nothing, as int8/matmul.cu.
#include "cuda/kernels/int8/tile.cuh"
#include "kernels/int8.h"

namespace bnb::cuda {
namespace {

// float32(1 / 127^2) and float32(1 / 127)
constexpr float kInv127Squared = 0x1.040c2p-14f;
constexpr float kInv127 = 0x1.020408p-7f;
// Codes within +-127 fill an int32 after 133144 terms. A multiple of every tile's depth.
constexpr int64_t kSplit = 131072;

constexpr int kListThreads = 1024;
constexpr int kChunk = 32;  // outlier columns in shared memory at a time
constexpr int kPitch = kChunk + 1;
template <class T>
constexpr int kOutlierValues = (T::kM + T::kN) * kPitch;

// list[0] = number of outlier columns, then the columns, ascending: each thread owns a run of the mask.
__global__ void __launch_bounds__(kListThreads) list_outliers_kernel(const uint8_t* mask, int64_t k, int64_t* list) {
  BNB_SHARED(int64_t[kListThreads / kWarp], totals);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t run = ceil_div(k, kListThreads);
  const int64_t begin = min(run * threadIdx.x, k), end = min(begin + run, k);
  int64_t mine = 0;
  for (int64_t j = begin; j < end; j++) mine += mask[j] != 0;
  int64_t sum = mine;  // of this lane and the ones before it
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t before = __shfl_up_sync(kFullMask, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == kWarp - 1) totals[warp] = sum;
  __syncthreads();
  int64_t at = sum - mine;
  for (int w = 0; w < warp; w++) at += totals[w];
  for (int64_t j = begin; j < end; j++)
    if (mask[j]) list[1 + at++] = j;
  if (threadIdx.x == kListThreads - 1) list[0] = at;
}

// The outputs of one thread: Rows x Cols of the tile, neighbours in pairs.
template <class T>
struct Owned {
  static constexpr int kRows = T::kWarpsK == 1 ? 2 * T::kRows : 1, kCols = T::kWarpsK == 1 ? 2 * T::kCols : 2;
  static_assert(T::kWarpsK == 1 || T::kM * T::kN == 2 * T::kThreads);

  static __device__ __forceinline__ int row(int i) {
    if constexpr (T::kWarpsK > 1) return static_cast<int>(threadIdx.x) * 2 / T::kN;
    return warp_place<T>().m + 8 * i + static_cast<int>(threadIdx.x) % kWarp / 4;
  }
  static __device__ __forceinline__ int col(int j) {
    if constexpr (T::kWarpsK > 1) return static_cast<int>(threadIdx.x) * 2 % T::kN + j;
    return warp_place<T>().n + j / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + j % 2;
  }
};

// Brings outlier columns [from, from + count) of the tile's rows of x and of the weight to shared memory.
template <class T>
__device__ __forceinline__ void load_outliers(const Int8LinearArgs& a, const int64_t* columns, int count, int64_t m0,
                                              int64_t n0, float* shared) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < (T::kM + T::kN) * kChunk; i += T::kThreads) {
    const int o = i % kChunk, line = i / kChunk;
    if (o >= count) continue;
    float value = 0.0f;
    if (line < T::kM) {
      const int64_t row = m0 + line;
      if (row < a.m) value = load_float(a.x, row * a.k + columns[o], a.dtype);
    } else if (const int64_t row = n0 + line - T::kM; row < a.n) {
      const int64_t at = row * a.k + columns[o];
      value = a.weight ? load_float(a.weight, at, a.weight_dtype)
                       : static_cast<float>(a.weight_codes[at]) * a.weight_stats[row] * kInv127;
    }
    shared[line * kPitch + o] = value;
  }
}

template <class T, bool Aligned, bool Long>
__global__ void __launch_bounds__(T::kThreads, Long ? 1 : T::kBlocks)
    int8_linear_kernel(Int8LinearArgs a, const int64_t* outliers, int64_t tiles_m, int64_t tiles_n) {
  BNB_DYNAMIC_SHARED(shared);
  using Own = Owned<T>;
  const TilePlace place = tile_place(blockIdx.x, tiles_m, tiles_n);
  const int64_t m0 = place.row * T::kM, n0 = place.col * T::kN;
  const CodeSource<Aligned> codes = {a.codes, a.m, a.k}, weight = {a.weight_codes, a.n, a.k};

  float y[Own::kRows][Own::kCols];
  int32_t sums[T::kRows][T::kCols][4];
  if constexpr (Long) {
    double totals[T::kRows][T::kCols][4];
    clear<T>(totals);
    for (int64_t from = 0; from < a.k; from += kSplit) {
      clear<T>(sums);
      multiply_codes<T>(shared, codes, weight, m0, n0, from, min(from + kSplit, a.k), sums);
#pragma unroll
      for (int i = 0; i < T::kRows * T::kCols * 4; i++)
        totals[i / 4 / T::kCols][i / 4 % T::kCols][i % 4] += sums[i / 4 / T::kCols][i / 4 % T::kCols][i % 4];
    }
#pragma unroll
    for (int i = 0; i < Own::kRows; i++)
#pragma unroll
      for (int j = 0; j < Own::kCols; j++) y[i][j] = static_cast<float>(totals[i / 2][j / 2][i % 2 * 2 + j % 2]);
  } else {
    clear<T>(sums);
    multiply_codes<T>(shared, codes, weight, m0, n0, 0, a.k, sums);
    if constexpr (T::kWarpsK == 1) {
#pragma unroll
      for (int i = 0; i < Own::kRows; i++)
#pragma unroll
        for (int j = 0; j < Own::kCols; j++) y[i][j] = static_cast<float>(sums[i / 2][j / 2][i % 2 * 2 + j % 2]);
    } else {
      y[0][0] = y[0][1] = 0.0f;
      emit_tile<T>(shared, sums, [&](int, int, const int32_t(&pair)[2]) {
        y[0][0] = static_cast<float>(pair[0]);
        y[0][1] = static_cast<float>(pair[1]);
      });
      __syncthreads();  // before the outliers overwrite the parts
    }
  }
  // Scales and bias of the tile in shared memory: next to 64 sums, there are few registers for their addresses.
  float* values = reinterpret_cast<float*>(shared);
  float *row_stats = values + kOutlierValues<T>, *col_stats = row_stats + T::kM, *bias = col_stats + T::kN;
  for (int i = static_cast<int>(threadIdx.x); i < T::kM + T::kN; i += T::kThreads) {
    const int64_t row = m0 + i, col = n0 + i - T::kM;
    if (i < T::kM) {
      row_stats[i] = row < a.m ? a.stats[row] : 0.0f;
    } else {
      col_stats[i - T::kM] = col < a.n ? a.weight_stats[col] : 0.0f;
      bias[i - T::kM] = col < a.n && a.bias ? load_float(a.bias, col, a.bias_dtype) : 0.0f;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Own::kRows; i++) {
    const float row_stat = row_stats[Own::row(i)];
#pragma unroll
    for (int j = 0; j < Own::kCols; j++) y[i][j] = y[i][j] * row_stat * col_stats[Own::col(j)] * kInv127Squared;
  }

  const int64_t count = outliers ? outliers[0] : 0;
  for (int64_t from = 0; from < count; from += kChunk) {
    const int chunk = static_cast<int>(min(count - from, int64_t{kChunk}));
    load_outliers<T>(a, outliers + 1 + from, chunk, m0, n0, values);
    __syncthreads();
#pragma unroll 1
    for (int o = 0; o < chunk; o++) {
      float w[Own::kCols];
#pragma unroll
      for (int j = 0; j < Own::kCols; j++) w[j] = values[(T::kM + Own::col(j)) * kPitch + o];
#pragma unroll
      for (int i = 0; i < Own::kRows; i++) {
        const float x = values[Own::row(i) * kPitch + o];
#pragma unroll
        for (int j = 0; j < Own::kCols; j++) y[i][j] = fmaf(x, w[j], y[i][j]);
      }
    }
    __syncthreads();
  }

  const Output out = {a.y, nullptr, a.m, a.n, a.dtype, false, a.n % 2 == 0, a.n};
#pragma unroll
  for (int i = 0; i < Own::kRows; i++) {
#pragma unroll
    for (int j = 0; j < Own::kCols; j += 2) {
      float pair[2] = {y[i][j], y[i][j + 1]};
      if (a.bias) {
        pair[0] += bias[Own::col(j)];
        pair[1] += bias[Own::col(j + 1)];
      }
      out.put<2>(0, m0 + Own::row(i), n0 + Own::col(j), pair);
    }
  }
}

template <class T, bool Aligned, bool Long>
void run(const Int8LinearArgs& a, const int64_t* outliers, int64_t tiles_m, int64_t tiles_n, CudaStream& s) {
  constexpr size_t kValues = (kOutlierValues<T> + T::kM + 2 * T::kN) * sizeof(float), kRing = T::kStages * T::kStage;
  launch(s, int8_linear_kernel<T, Aligned, Long>, grid_of(tiles_m * tiles_n), dim3(T::kThreads),
         kRing > kValues ? kRing : kValues, a, outliers, tiles_m, tiles_n);
}

}  // namespace

void int8_linear(const Int8LinearArgs& a, CudaStream& s) {
  if (a.m == 0 || a.n == 0) return;
  int64_t* outliers = nullptr;
  if (a.outlier_mask && a.k > 0) {
    outliers = static_cast<int64_t*>(s.scratch(static_cast<size_t>(a.k + 1) * sizeof(int64_t)));
    launch(s, list_outliers_kernel, dim3(1), dim3(kListThreads), 0, a.outlier_mask, a.k, outliers);
  }
  const bool aligned = codes_aligned(a.codes, a.weight_codes, a.k);
  if (a.k > kSplit) {
    const int64_t tiles_m = ceil_div(a.m, SmallTile::kM), tiles_n = ceil_div(a.n, SmallTile::kN);
    aligned ? run<SmallTile, true, true>(a, outliers, tiles_m, tiles_n, s)
            : run<SmallTile, false, true>(a, outliers, tiles_m, tiles_n, s);
    return;
  }
  with_code_tile(a.m, a.n, aligned, s, [&]<class T, bool Aligned>(int64_t tiles_m, int64_t tiles_n) {
    run<T, Aligned, false>(a, outliers, tiles_m, tiles_n, s);
  });
}

}  // namespace bnb::cuda
