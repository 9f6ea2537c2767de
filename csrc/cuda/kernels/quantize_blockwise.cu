// Blockwise 8-bit quantization with a map of 256 values, its inverse, and the mean for double quantization.
//
// Layout    One byte per element; blocks are powers of two from 64 to 4096.
// Work      Quantizing: cuda/quantize_block.cuh; a thread reads 8 elements at once and writes 8 bytes. Dequantizing: a
//           warp does 1024 elements, in steps of one 16-byte store per lane, next to each other. Each lane computes the
//           scale of 32 elements, nested or not, and passes it to those that need it. What is left behind the last
//           whole tile goes element by element.
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
  __device__ __forceinline__ uint32_t word(const float* x, float factor) const {
    uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) codes |= code(x[i] * factor) << (8 * i);
    return codes;
  }
};

template <DynamicMap map>
struct BuiltInEncoder : DynamicEncoder<map> {
  __device__ void load(const float*) { DynamicEncoder<map>::load(); }
};

// The codes of `count` elements of a block with this largest magnitude.
template <class T, class Encoder>
BNB_OUT_OF_LINE void encode_rest(const Encoder& encoder, const T* x, float subtracted, uint8_t* codes, int count,
                                 uint32_t top) {
  const BlockNorm norm(top);
#pragma unroll 1
  for (int i = 0; i < count; i++)
    codes[i] = static_cast<uint8_t>(encoder.code(norm.normalized(widen(x[i]) - subtracted)));
}

template <class T, class Encoder, int Lanes>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_blockwise_kernel(const T* x, const float* map, const float* offset, uint8_t* codes, float* absmax,
                              int64_t n, int whole, int block_shift) {
  BNB_SHARED(Encoder, encoder);
  encoder.load(map);
  __syncthreads();
  const float subtracted = offset ? offset[0] : 0.0f;
  const int threads = Lanes > 0 ? Lanes : (1 << block_shift) / kQuantizeRun;
  const int mine = threadIdx.x * kQuantizeRun, block = mine >> block_shift,
            tile_shift = kQuantizeTileShift - block_shift;
  const bool leads = (threadIdx.x & (threads - 1)) == 0;
  int turn = 0, tile = blockIdx.x;
  for (; tile < whole; tile += gridDim.x) {
    const T* const from = x + mine + int64_t{tile} * kQuantizeTile;
    uint8_t* const to = codes + mine + int64_t{tile} * kQuantizeTile;
    float v[kQuantizeRun];
    load_whole_floats(from, v);
    if (offset) {
#pragma unroll
      for (int i = 0; i < kQuantizeRun; i++) v[i] -= subtracted;
    }
    const BlockNorm norm(group_absmax<Lanes>(largest_magnitude(v), threads, turn));
    if (leads) absmax[block + (int64_t{tile} << tile_shift)] = norm.absmax;
    const float factor = reciprocal(norm.absmax);
    store_vec(reinterpret_cast<uint32_t*>(to), Vec<uint32_t, 2>{encoder.word(v, factor), encoder.word(v + 4, factor)});
    if (!norm.plain()) [[unlikely]]
      encode_rest(encoder, from, subtracted, to, kQuantizeRun, norm.top);
  }
  for (; int64_t{tile} * kQuantizeTile < n; tile += gridDim.x) {
    const int64_t first = int64_t{tile} * kQuantizeTile + mine, left = n - first;
    float v[kQuantizeRun];
    load_floats(x + first, left, false, v);
#pragma unroll
    for (int i = 0; i < kQuantizeRun; i++) v[i] = i < left ? v[i] - subtracted : 0.0f;
    const uint32_t top = group_absmax<Lanes>(largest_magnitude(v), threads, turn);
    if (left <= 0) continue;
    if (leads) absmax[first >> block_shift] = BlockNorm(top).absmax;
    encode_rest(encoder, x + first, subtracted, codes + first, static_cast<int>(min(left, int64_t{kQuantizeRun})), top);
  }
}

template <class T, class Encoder>
void quantize_with(const QuantizeBlockwiseArgs& a, CudaStream& s) {
  const T* x = static_cast<const T*>(a.x);
  const int64_t whole = aligned_for(16, x) && aligned_for(8, a.codes) ? a.n / kQuantizeTile : 0;
  visit_group<8>(a.blocksize, [&](auto lanes) {
    launch(s, quantize_blockwise_kernel<T, Encoder, lanes>, quantize_grid(s, a.n, sizeof(Encoder)),
           dim3(kQuantizeThreads), 0, x, a.code, a.offset, a.codes, a.absmax, a.n, whole, shift_of(a.blocksize));
  });
}

constexpr int kDequantizeThreads = 256;
constexpr int kWarpTile = 1024, kTile = kDequantizeThreads / kWarp * kWarpTile;
constexpr int kScaled = 32;  // elements whose scale one lane computes

template <class T, bool Offset>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize_blockwise_kernel(const uint8_t* codes, const float* map, BlockScales scales, const float* offset, T* y,
                                int64_t n, int whole, int block_shift, int nested_shift) {
  constexpr int W = kVector<T>;
  constexpr int kSteps = kScaled / W;
  BNB_SHARED(Values8bitTable, table);
  table.load(map);
  __syncthreads();
  const float added = Offset ? offset[0] : 0.0f;
  const uint32_t lane = threadIdx.x % kWarp;
  const int mine = threadIdx.x / kWarp * kWarpTile + lane * W;  // the first of the first step
  const int scaled = threadIdx.x * kScaled;
  for (int tile = blockIdx.x; tile < whole; tile += gridDim.x) {
    const auto* const from = reinterpret_cast<const uint32_t*>(codes + mine + int64_t{tile} * kTile);
    Vec<uint32_t, W / 4> words[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; s++) words[s] = load_vec<W / 4>(from + s * kWarp * (W / 4));
    const float scale = scale_of(scales, (int64_t{tile} * kTile + scaled) >> block_shift, nested_shift);
    T* const to = y + mine + int64_t{tile} * kTile;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const float theirs = __shfl_sync(kFullMask, scale, lane / (kScaled / W) + s * W);
      float v[W];
#pragma unroll
      for (int i = 0; i < W; i += 4) table.values(words[s].v[i / 4], lane, v + i);
#pragma unroll
      for (int i = 0; i < W; i++) {
        v[i] *= theirs;
        if constexpr (Offset) v[i] += added;
      }
      store_floats(to + s * kWarp * W, W, true, v);
    }
  }
#pragma unroll 1
  for (int64_t i = int64_t{whole} * kTile + global_thread(); i < n; i += global_threads()) {
    const float v = table.at(codes[i], lane) * scale_of(scales, i >> block_shift, nested_shift);
    y[i] = narrow<T>(Offset ? v + added : v);
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
    const int64_t whole = aligned_for(16, y) && aligned_for(8, a.codes) ? a.n / kTile : 0;
    const int64_t rest = ceil_div(a.n - whole * kTile, kDequantizeThreads);
    launch(s, a.offset ? dequantize_blockwise_kernel<T, true> : dequantize_blockwise_kernel<T, false>,
           stride_grid(s, max(whole, rest), 1), dim3(kDequantizeThreads), 0, a.codes, a.code, a.scales, a.offset, y,
           a.n, whole, shift_of(a.blocksize), shift_of(a.scales.nested_blocksize));
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
