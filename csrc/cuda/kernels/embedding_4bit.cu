// Rows of a 4-bit table.
//
// Layout    row id covers weights [id * cols, (id + 1) * cols) of the flattened table: blocks may straddle rows. Two
//           codes a byte, the first in the high nibble.
// Work      cuda/decode_4bit.cuh where rows are multiples of 8 weights; elsewhere a weight per thread, grid-stride.
// Numerics  fl(table * scale), rounded once to the dtype. An id outside the table reports a fault and reads as zeros.
// Needs     a blocksize that is a power of two, at least 8.
#include "cuda/decode_4bit.cuh"
#include "kernels/embedding_4bit.h"

namespace bnb::cuda {
namespace {

struct Table {
  const int32_t* ids;
  const uint8_t* packed;
  BlockScales scales;
  QuantType type;
  int shift, nested_shift;
  int64_t count, rows, cols;
  Fault* fault;
  const char* op;

  // The row of an id, or -1.
  __device__ __forceinline__ int64_t row_of(int64_t i, bool reports) const {
    const int32_t id = ids[i];
    if (id >= 0 && id < rows) return id;
    if (reports) report_out_of_range(fault, op, id, rows);
    return -1;
  }
};

template <class T>
__global__ void __launch_bounds__(kMapThreads) embedding_4bit_kernel(Table t, T* y, int chunks) {
  BNB_SHARED(Decoder4bit, decoder);
  decoder.load(t.type);
  __syncthreads();
  const DecodeScales scales(t.scales, t.shift, t.nested_shift);
  for (DecodeTurn turn(chunks); turn.rows < t.count; turn.next(chunks)) {
    const int64_t i = turn.row(), column = int64_t{turn.chunk} * kDecodeChunk;
    if (i >= t.count) continue;
    const int count = static_cast<int>(min(t.cols - column, int64_t{kDecodeChunk}));
    const int64_t row = t.row_of(i, column == 0 && threadIdx.x % kWarp == 0);
    T* const to = y + i * t.cols + column;
    if (row >= 0) {
      decode_chunk(decoder, t.packed, scales, row * t.cols + column, count, to);
    } else {
      for (int j = threadIdx.x % kWarp; j < count; j += kWarp) to[j] = T{};
    }
  }
}

// The same for any number of columns.
template <class T>
__global__ void __launch_bounds__(kMapThreads) embedding_4bit_each_kernel(Table t, T* y) {
  BNB_SHARED(Decoder4bit, decoder);
  decoder.load(t.type);
  __syncthreads();
  for (int64_t i = global_thread(); i < t.count * t.cols; i += global_threads()) {
    const int64_t column = i % t.cols, row = t.row_of(i / t.cols, column == 0), at = row * t.cols + column;
    float v = 0.0f;
    if (row >= 0)
      v = decoder.value(t.packed[at / 2] >> (at % 2 ? 0 : 4), threadIdx.x % kWarp) *
          scale_of(t.scales, at >> t.shift, t.nested_shift);
    y[i] = narrow<T>(v);
  }
}

}  // namespace

void embedding_4bit(const Embedding4BitArgs& a, CudaStream& s) {
  const Table table{
      a.ids,   a.w.packed, a.w.scales, a.w.type, shift_of(a.w.blocksize), shift_of(a.w.scales.nested_blocksize),
      a.count, a.rows,     a.cols,     a.fault,  "embedding_4bit"};
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    auto* y = static_cast<T*>(a.y);
    if (a.cols % kDecodeRun == 0 && aligned_for(4, a.w.packed) && aligned_for(16, y))
      launch(s, embedding_4bit_kernel<T>, decode_grid(s, a.count, a.cols), dim3(kMapThreads), 0, table, y,
             decode_chunks(a.cols));
    else
      launch(s, embedding_4bit_each_kernel<T>, map_grid(s, a.count * a.cols, 1), dim3(kMapThreads), 0, table, y);
  });
}

}  // namespace bnb::cuda
