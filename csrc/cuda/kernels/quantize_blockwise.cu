// Blockwise 8-bit quantization with a map of 256 values, its inverse, and the mean for double quantization.
//
// Layout    One byte per element; blocks are powers of two from 64 to 4096.
// Work      Quantizing: cuda/quantize_block.cuh; a thread reads 8 elements at once and writes 8 bytes. Dequantizing: a
//           warp does 1024 elements, in steps of one 16-byte store per lane, next to each other. Each lane computes the
//           scale of 32 elements, nested or not, and passes it to those that need it.
// Numerics  Bit exact: x = a * (1 / absmax) with IEEE operations (a / absmax for a subnormal scale), then the nearest
//           entry, a tie going to the even index: DynamicEncoder for the built-in maps; halving over sorted strict
//           thresholds, which counts the same ones, for any other. The mean is a fixed tree in float64 that depends
//           on n alone.
// Needs     Vectors where the codes are aligned to 8 bytes and the floats to 16; otherwise single elements. A custom
//           map that is ascending and finite; the op has checked it.
#include "cuda/quantize_block.cuh"
#include "kernels/quantize_blockwise.h"

namespace bnb::cuda {
namespace {

// The strict thresholds of any map: code(x) = #{i : x > t[i]}.
struct CustomEncoder {
  float t[256];
  float unsorted[256];

  __device__ void load(const float* code) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) {
      const float middle = i < 255 ? (code[i] + code[i + 1]) * 0.5f : HUGE_VALF;
      unsorted[i] = i % 2 && i < 255 ? next_below(middle) : middle;
    }
    __syncthreads();
    // Equal entries leave an odd threshold just below even ones before it. Each finds its place by counting.
    for (int i = threadIdx.x; i < 256; i += blockDim.x) {
      const float mine = unsorted[i];
      int place = 0;
      for (int j = 0; j < 256; j++) place += unsorted[j] < mine || (unsorted[j] == mine && j < i);
      t[place] = mine;
    }
  }

  __device__ __forceinline__ uint32_t code(float x) const {
    uint32_t count = 0;
#pragma unroll
    for (uint32_t step = 128; step > 0; step /= 2) count += x > t[count + step - 1] ? step : 0;
    return count;
  }
};

template <DynamicMap map>
struct BuiltInEncoder : DynamicEncoder<map> {
  __device__ void load(const float*) { DynamicEncoder<map>::load(); }
};

template <class T, class Encoder>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_blockwise_kernel(const T* x, const float* map, const float* offset, uint8_t* codes, float* absmax,
                              int64_t n, int block_shift, bool vectors) {
  BNB_SHARED(Encoder, encoder);
  BNB_SHARED(uint32_t[2][kQuantizeThreads / kWarp], partial);
  encoder.load(map);
  __syncthreads();
  const uint32_t zero = encoder.code(0.0f);
  const float subtracted = offset ? offset[0] : 0.0f;
  const int group = (1 << block_shift) / kQuantizeRun;
  int turn = 0;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * kQuantizeTile; tile < n;
       tile += static_cast<int64_t>(gridDim.x) * kQuantizeTile) {
    const int64_t first = tile + threadIdx.x * kQuantizeRun, left = n - first;
    const bool whole = vectors && left >= kQuantizeRun;
    float v[kQuantizeRun];
    load_floats(x + first, left, whole, v);
    if (offset) {
#pragma unroll
      for (int i = 0; i < kQuantizeRun; i++) v[i] = i < left ? v[i] - subtracted : 0.0f;
    }
    const BlockNorm norm(group_absmax(v, group, partial, turn++));
    norm.normalize(v);
    uint8_t out[kQuantizeRun];
#pragma unroll
    for (int i = 0; i < kQuantizeRun; i++) out[i] = static_cast<uint8_t>(norm.coded ? encoder.code(v[i]) : zero);
    if (left <= 0) continue;
    if (threadIdx.x % group == 0) absmax[first >> block_shift] = norm.absmax;
    store_run(codes + first, left, whole, out);
  }
}

template <class T, class Encoder>
void quantize_with(const QuantizeBlockwiseArgs& a, CudaStream& s) {
  const T* x = static_cast<const T*>(a.x);
  launch(s, quantize_blockwise_kernel<T, Encoder>, quantize_grid(s, a.n), dim3(kQuantizeThreads), 0, x, a.code,
         a.offset, a.codes, a.absmax, a.n, shift_of(a.blocksize), aligned_for(16, x) && aligned_for(8, a.codes));
}

constexpr int kDequantizeThreads = 256;
constexpr int kWarpTile = 1024;
constexpr int kScaled = 32;  // elements whose scale one lane computes

// W codes, four a word. Codes beyond the end read as zeros.
template <int W>
__device__ __forceinline__ Vec<uint32_t, W / 4> load_codes(const uint8_t* codes, int left, bool vectors) {
  if (vectors && left >= W) return load_vec<W / 4>(reinterpret_cast<const uint32_t*>(codes));
  Vec<uint32_t, W / 4> words = {};
#pragma unroll
  for (int i = 0; i < W; i++)
    if (i < left) words.v[i / 4] |= static_cast<uint32_t>(codes[i]) << (8 * (i % 4));
  return words;
}

template <class T>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize_blockwise_kernel(const uint8_t* codes, const float* map, BlockScales scales, const float* offset, T* y,
                                int64_t n, int block_shift, int nested_shift, bool vectors) {
  constexpr int W = kVector<T>;
  constexpr int kSteps = kScaled / W;
  BNB_SHARED(Values8bitTable, table);
  table.load(map);
  __syncthreads();
  const float added = offset ? offset[0] : 0.0f;
  const int lane = threadIdx.x % kWarp;
  for (int64_t tile = global_thread() / kWarp * kWarpTile; tile < n; tile += global_threads() / kWarp * kWarpTile) {
    const int left = n - tile < kWarpTile ? static_cast<int>(n - tile) : kWarpTile;
    Vec<uint32_t, W / 4> words[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int first = (s * kWarp + lane) * W;
      words[s] = load_codes<W>(codes + tile + first, left - first, vectors);
    }
    const int mine = lane * kScaled;
    const float scale = mine < left ? scale_of(scales, (tile + mine) >> block_shift, nested_shift) : 0.0f;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const int first = (s * kWarp + lane) * W;
      const float theirs = __shfl_sync(kFullMask, scale, first / kScaled);
      float v[W];
#pragma unroll
      for (int i = 0; i < W; i++) {
        v[i] = table.at(words[s].v[i / 4] >> (8 * (i % 4)) & 255, lane) * theirs;
        if (offset) v[i] += added;
      }
      store_floats(y + tile + first, left - first, vectors && left - first >= W, v);
    }
  }
}

constexpr int kMeanThreads = 256;
constexpr int64_t kMeanGrain = 16 * kMeanThreads;
constexpr int64_t kMeanBlocks = 1024;

// The last block to finish adds the sums of all.
__global__ void __launch_bounds__(kMeanThreads)
    mean_float64_kernel(const float* x, double* partial, int32_t* finished, float* mean, int64_t n) {
  BNB_SHARED(bool, last);
  double sum = 0;
  for (int64_t i = global_thread(); i < n; i += global_threads()) sum += static_cast<double>(x[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(finished, 1) == static_cast<int32_t>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  double total = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += blockDim.x) total += partial[b];
  total = block_sum(total);
  if (threadIdx.x == 0) {
    mean[0] = n ? static_cast<float>(total / static_cast<double>(n)) : 0.0f;
    *finished = 0;
  }
}

}  // namespace

void quantize_blockwise(const QuantizeBlockwiseArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (a.map == Map8Bit::dynamic_signed) {
      quantize_with<T, BuiltInEncoder<DynamicMap::signed_map>>(a, s);
    } else if (a.map == Map8Bit::dynamic_unsigned) {
      quantize_with<T, BuiltInEncoder<DynamicMap::unsigned_map>>(a, s);
    } else {
      quantize_with<T, CustomEncoder>(a, s);
    }
  });
}

void dequantize_blockwise(const DequantizeBlockwiseArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    T* y = static_cast<T*>(a.y);
    const dim3 grid = stride_grid(s, a.n, int64_t{kDequantizeThreads} / kWarp * kWarpTile);
    launch(s, dequantize_blockwise_kernel<T>, grid, dim3(kDequantizeThreads), 0, a.codes, a.code, a.scales, a.offset, y,
           a.n, shift_of(a.blocksize), shift_of(a.scales.nested_blocksize),
           aligned_for(16, y) && aligned_for(8, a.codes));
  });
}

void mean_float64(const MeanFloat64Args& a, CudaStream& s) {
  const int64_t wanted = ceil_div(a.n, kMeanGrain);
  const int64_t blocks = wanted < 1 ? 1 : wanted < kMeanBlocks ? wanted : kMeanBlocks;
  auto* partial = static_cast<double*>(s.scratch(static_cast<size_t>(blocks) * sizeof(double)));
  launch(s, mean_float64_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kMeanThreads), 0, a.x, partial, s.counters,
         a.mean, a.n);
}

}  // namespace bnb::cuda
