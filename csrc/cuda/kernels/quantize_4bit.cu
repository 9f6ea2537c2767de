// Blockwise 4-bit quantization and its inverse.
//
// Layout    Element 2k is the high nibble of byte k. Blocks are powers of two from 32 to 4096, so a block starts on a
//           byte, and 32 elements from a multiple of 32 on have one scale.
// Work      Quantizing: cuda/quantize_block.cuh; a thread reads 8 elements at once and writes 4 bytes. Dequantizing: a
//           warp does 1024 elements, in steps of one 16-byte store per lane, next to each other, from 2 or 4 packed
//           bytes. Each lane computes the scale of 32 elements, nested or not, and passes it to those that need it.
//           What is left behind the last whole tile goes element by element. All threads of a block do equally many
//           tiles, so that the compiler keeps addresses in uniform registers.
// Numerics  Bit exact: x = a * (1 / absmax) with IEEE operations (a / absmax for a subnormal scale), then the search of
//           Encoder4bit, once more and slowly for a block whose scale is unusual. The inverse is table * scale in
//           float32, rounded once.
// Needs     Vectors where packed is aligned to 4 bytes and the floats to 16; otherwise single elements.
#include "cuda/quantize_block.cuh"
#include "kernels/quantize_4bit.h"

namespace bnb::cuda {
namespace {

// The codes of `count` elements of a block with this largest magnitude, two at a time.
template <class T>
BNB_OUT_OF_LINE void encode_rest(const Encoder4bit& encoder, const T* x, uint8_t* packed, int count, uint32_t top) {
  const uint32_t lane = threadIdx.x % kWarp;
  const BlockNorm norm(top);
  const auto code = [&](int i) { return encoder.code(i < count ? norm.normalized(widen(x[i])) : 0.0f, lane); };
#pragma unroll 1
  for (int i = 0; i < count; i += 2) packed[i / 2] = static_cast<uint8_t>(code(i) << 4 | code(i + 1));
}

template <class T, int Lanes>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_4bit_kernel(const T* x, uint8_t* packed, float* absmax, int64_t n, int whole, int block_shift,
                         QuantType type) {
  BNB_SHARED(Encoder4bit, encoder);
  encoder.load(type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int threads = Lanes > 0 ? Lanes : (1 << block_shift) / kQuantizeRun;
  const int mine = threadIdx.x * kQuantizeRun, block = mine >> block_shift,
            tile_shift = kQuantizeTileShift - block_shift;
  const bool leads = (threadIdx.x & (threads - 1)) == 0;
  int turn = 0, tile = blockIdx.x;
  for (; tile < whole; tile += gridDim.x) {
    const T* const from = x + mine + int64_t{tile} * kQuantizeTile;
    uint8_t* const to = packed + mine / 2 + int64_t{tile} * (kQuantizeTile / 2);
    float v[kQuantizeRun];
    load_whole_floats(from, v);
    const BlockNorm norm(group_absmax<Lanes>(largest_magnitude(v), threads, turn));
    if (leads) absmax[block + (int64_t{tile} << tile_shift)] = norm.absmax;
    store_vec(reinterpret_cast<uint32_t*>(to), Vec<uint32_t, 1>{encoder.word(v, reciprocal(norm.absmax), lane)});
    if (!norm.plain()) [[unlikely]]
      encode_rest(encoder, from, to, kQuantizeRun, norm.top);
  }
  for (; int64_t{tile} * kQuantizeTile < n; tile += gridDim.x) {
    const int64_t first = int64_t{tile} * kQuantizeTile + mine;
    float v[kQuantizeRun];
    load_floats(x + first, n - first, false, v);
    const uint32_t top = group_absmax<Lanes>(largest_magnitude(v), threads, turn);
    if (first >= n) continue;
    if (leads) absmax[first >> block_shift] = BlockNorm(top).absmax;
    encode_rest(encoder, x + first, packed + first / 2, static_cast<int>(min(n - first, int64_t{kQuantizeRun})), top);
  }
}

constexpr int kDequantizeThreads = 256;
constexpr int kWarpTile = 1024, kTile = kDequantizeThreads / kWarp * kWarpTile;
constexpr int kScaled = 32;  // elements whose scale one lane computes

template <class T>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize_4bit_kernel(const uint8_t* packed, BlockScales scales, T* y, int64_t n, int whole, int block_shift,
                           int nested_shift, QuantType type) {
  constexpr int W = kVector<T>;
  constexpr int kSteps = kScaled / W;
  using Word = std::conditional_t<W == 8, uint32_t, uint16_t>;
  BNB_SHARED(Decoder4bit, decoder);
  decoder.load(type);
  __syncthreads();
  const uint32_t lane = threadIdx.x % kWarp;
  const int mine = threadIdx.x / kWarp * kWarpTile + lane * W;  // the first of the first step
  const int scaled = threadIdx.x * kScaled;
  for (int tile = blockIdx.x; tile < whole; tile += gridDim.x) {
    const Word* const from = reinterpret_cast<const Word*>(packed + mine / 2 + int64_t{tile} * (kTile / 2));
    Word words[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; s++) words[s] = load_vec<1>(from + s * kWarp).v[0];
    const float scale = scale_of(scales, (int64_t{tile} * kTile + scaled) >> block_shift, nested_shift);
    T* const to = y + mine + int64_t{tile} * kTile;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const float theirs = __shfl_sync(kFullMask, scale, lane / (kScaled / W) + s * W);
      float v[W];
      decoder.values(words[s], lane, v);
#pragma unroll
      for (int i = 0; i < W; i++) v[i] *= theirs;
      store_floats(to + s * kWarp * W, W, true, v);
    }
  }
#pragma unroll 1
  for (int64_t i = int64_t{whole} * kTile + global_thread(); i < n; i += global_threads())
    y[i] = narrow<T>(decoder.value(packed[i / 2] >> (i % 2 ? 0 : 4), lane) *
                     scale_of(scales, i >> block_shift, nested_shift));
}

}  // namespace

void quantize_4bit(const Quantize4BitArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    const T* x = static_cast<const T*>(a.x);
    const int64_t whole = aligned_for(16, x) && aligned_for(4, a.packed) ? a.n / kQuantizeTile : 0;
    visit_group<4>(a.blocksize, [&](auto lanes) {
      launch(s, quantize_4bit_kernel<T, lanes>, quantize_grid(s, a.n, sizeof(Encoder4bit)), dim3(kQuantizeThreads), 0,
             x, a.packed, a.absmax, a.n, whole, shift_of(a.blocksize), a.type);
    });
  });
}

void dequantize_4bit(const Dequantize4BitArgs& a, CudaStream& s) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    T* y = static_cast<T*>(a.y);
    const int64_t whole = aligned_for(16, y) && aligned_for(4, a.packed) ? a.n / kTile : 0;
    const int64_t rest = ceil_div(a.n - whole * kTile, kDequantizeThreads);
    launch(s, dequantize_4bit_kernel<T>, stride_grid(s, max(whole, rest), 1), dim3(kDequantizeThreads), 0, a.packed,
           a.scales, y, a.n, whole, shift_of(a.blocksize), shift_of(a.scales.nested_blocksize), a.type);
  });
}

}  // namespace bnb::cuda
