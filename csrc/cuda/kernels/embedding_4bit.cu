// Rows of a 4-bit table.
//
// Layout    row id covers weights [id * cols, (id + 1) * cols) of the flattened table: blocks may straddle rows. Two
//           codes a byte, the first in the high nibble.
// Work      a thread decodes runs of 8 weights of a row, grid-stride: 4 bytes and one scale where rows are multiples
//           of 8, byte by byte elsewhere. The table of 16 values is in shared memory.
// Numerics  fl(table * scale), rounded once to the dtype. An id outside the table reports a fault and reads as zeros.
// Needs     a blocksize that is a power of two, at least 8.
#include "cuda/codebooks.cuh"
#include "cuda/map.cuh"
#include "kernels/embedding_4bit.h"

namespace bnb::cuda {
namespace {

constexpr int kRun = 8;

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    embedding_4bit_kernel(const int32_t* ids, T* y, const uint8_t* packed, BlockScales scales, QuantType type,
                          int shift, int64_t count, int64_t rows, int64_t cols, bool vectors, Fault* fault,
                          const char* op) {
  BNB_SHARED(float[16], table);
  if (threadIdx.x < 16) table[threadIdx.x] = device_values_4bit(type)[threadIdx.x];
  __syncthreads();
  const int64_t runs = ceil_div(cols, kRun);
  for (int64_t item = global_thread(); item < count * runs; item += global_threads()) {
    const int64_t i = item / runs, c = (item - i * runs) * kRun, left = cols - c;
    const int32_t id = ids[i];
    const bool known = id >= 0 && id < rows;
    if (!known && c == 0) report_out_of_range(fault, op, id, rows);
    const int64_t first = id * cols + c;
    float v[kRun] = {};
    if (known && vectors) {
      const Vec<uint8_t, 4> bytes = load_vec<4>(packed + first / 2);
      const float scale = scale_of(scales, first >> shift);
#pragma unroll
      for (int j = 0; j < kRun; j += 2) {
        v[j] = table[bytes.v[j / 2] >> 4] * scale;
        v[j + 1] = table[bytes.v[j / 2] & 15] * scale;
      }
    } else if (known) {
#pragma unroll
      for (int j = 0; j < kRun; j++) {
        if (j >= left) continue;
        const int64_t at = first + j;
        const int byte = packed[at / 2];
        v[j] = table[at % 2 ? byte & 15 : byte >> 4] * scale_of(scales, at >> shift);
      }
    }
    store_floats(y + i * cols + c, left, vectors, v);
  }
}

}  // namespace

void embedding_4bit(const Embedding4BitArgs& a, CudaStream& s) {
  int shift = 0;
  while (int64_t{1} << shift < a.w.blocksize) shift++;
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    auto* y = static_cast<T*>(a.y);
    const bool vectors = a.cols % kRun == 0 && aligned_for(4, a.w.packed) && vectors_fit<T, kRun>(y);
    launch(s, embedding_4bit_kernel<T>, map_grid(s, a.count * ceil_div(a.cols, kRun), 1), dim3(kMapThreads), 0, a.ids,
           y, a.w.packed, a.w.scales, a.w.type, shift, a.count, a.rows, a.cols, vectors, a.fault, "embedding_4bit");
  });
}

}  // namespace bnb::cuda
