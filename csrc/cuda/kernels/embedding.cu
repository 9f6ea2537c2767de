// Rows of a table by id, and the gradient of the table.
//
// Layout    weight and dweight [rows, cols], y and dy [count, cols].
// Work      forward: a thread a unit of up to 16 bytes. Backward: the ids are bucketed in scratch memory - counted,
// room
//           handed out, placed, put in order - and then every run of the table, its zeros included, is written once
//           by the thread that owns it. Renorm: a warp per id, of which the first to come takes the row.
// Numerics  a row of dweight is added up in float32 in the order of the ids and rounded once. Where the buckets lie
//           depends on timing, what is in them does not: the bits are the CPU's.
// Needs     nothing; ids outside the table are reported forward and passed over backward.
#include "cuda/map.cuh"
#include "kernels/embedding.h"

namespace bnb::cuda {
namespace {

__device__ __forceinline__ bool inside(int32_t id, int64_t rows) { return id >= 0 && id < rows; }

// --- forward ---------------------------------------------------------------------------------------------------------

// `run` units a row; a table without columns has one that is only looked at.
template <class Unit>
__global__ void __launch_bounds__(kMapThreads)
    embedding_kernel(const int32_t* ids, const Unit* weight, Unit* y, int64_t count, int64_t rows, int64_t run,
                     Fault* fault, const char* op) {
  const int64_t items = run > 0 ? run : 1;
  for (int64_t item = global_thread(); item < count * items; item += global_threads()) {
    const int64_t i = item / items, at = item - i * items;
    const int32_t id = ids[i];
    const bool known = inside(id, rows);
    if (!known && at == 0) report_out_of_range(fault, op, id, rows);
    if (run > 0) store_unit(y + item, known ? load_unit(weight + id * run + at) : Unit{});
  }
}

// --- backward: buckets of positions
// ------------------------------------------------------------------------------------

using Number = unsigned long long;  // the 64-bit type of atomics

// Which positions of ids name each row. Padding and ids outside the table name none.
struct Buckets {
  Number* total;   // [1] of positions placed
  Number* counts;  // [rows]
  Number* ends;    // [rows]; while positions are placed, where the next one goes
  int64_t* found;  // [count] in the order they came
  int64_t* order;  // [count] ascending within a bucket
};

__global__ void __launch_bounds__(kMapThreads) clear_kernel(Buckets b, int64_t rows) {
  for (int64_t r = global_thread(); r < rows; r += global_threads()) b.counts[r] = 0;
  if (global_thread() == 0) *b.total = 0;
}

__global__ void __launch_bounds__(kMapThreads)
    count_kernel(Buckets b, const int32_t* ids, int64_t count, int64_t rows, int64_t padding) {
  for (int64_t i = global_thread(); i < count; i += global_threads())
    if (inside(ids[i], rows) && ids[i] != padding) atomicAdd(&b.counts[ids[i]], Number{1});
}

// Each warp takes room for 32 rows at once.
__global__ void __launch_bounds__(kMapThreads) room_kernel(Buckets b, int64_t rows) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t base = global_thread() - lane; base < rows; base += global_threads()) {
    const int64_t r = base + lane;
    const Number mine = r < rows ? b.counts[r] : 0;
    Number up_to_mine = mine;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const Number before = __shfl_up_sync(kFullMask, up_to_mine, offset);
      if (lane >= offset) up_to_mine += before;
    }
    Number start = 0;
    if (lane == kWarp - 1 && up_to_mine > 0) start = atomicAdd(b.total, up_to_mine);
    start = __shfl_sync(kFullMask, start, kWarp - 1);
    if (r < rows) b.ends[r] = start + up_to_mine - mine;
  }
}

__global__ void __launch_bounds__(kMapThreads)
    place_kernel(Buckets b, const int32_t* ids, int64_t count, int64_t rows, int64_t padding) {
  for (int64_t i = global_thread(); i < count; i += global_threads())
    if (inside(ids[i], rows) && ids[i] != padding) b.found[atomicAdd(&b.ends[ids[i]], Number{1})] = i;
}

// The rank of a position is the number of smaller ones in its bucket, whose entries a warp mostly reads together.
__global__ void __launch_bounds__(kMapThreads) order_kernel(Buckets b, const int32_t* ids) {
  const int64_t total = static_cast<int64_t>(*b.total);
  for (int64_t p = global_thread(); p < total; p += global_threads()) {
    const int64_t position = b.found[p];
    const int32_t id = ids[position];
    const int64_t end = static_cast<int64_t>(b.ends[id]), begin = end - static_cast<int64_t>(b.counts[id]);
    int64_t rank = 0;
#pragma unroll 4
    for (int64_t q = begin; q < end; q++) rank += b.found[q] < position;
    b.order[begin + rank] = position;
  }
}

template <int V, class T>
__device__ __forceinline__ void add_to(float (&sum)[V], const T (&part)[V]) {
#pragma unroll
  for (int j = 0; j < V; j++) sum[j] = sum[j] + widen(part[j]);
}

// Rows of dy that are on their way at once, where vectors fit.
constexpr int kAhead = 8;

template <class T>
__global__ void __launch_bounds__(kMapThreads, 4)
    sum_kernel(Buckets b, const T* dy, T* dweight, int64_t rows, int64_t cols, bool scale_by_frequency, bool vectors) {
  constexpr int V = kVector<T>;
  const int64_t runs = ceil_div(cols, V);
  for (int64_t item = global_thread(); item < rows * runs; item += global_threads()) {
    const int64_t row = item / runs, i = (item - row * runs) * V, left = cols - i;
    const int64_t times = static_cast<int64_t>(b.counts[row]);
    float sum[V] = {};
    if (times > 0) {
      const int64_t* order = b.order + (static_cast<int64_t>(b.ends[row]) - times);
      const T* from = dy + i;
      int64_t k = 0;
      if (vectors) {
        for (; k + kAhead <= times; k += kAhead) {
          T part[kAhead][V];
#pragma unroll
          for (int a = 0; a < kAhead; a++) load_run(from + order[k + a] * cols, V, true, part[a]);
#pragma unroll
          for (int a = 0; a < kAhead; a++) add_to(sum, part[a]);
        }
      }
#pragma unroll 1
      for (; k < times; k++) {
        T part[V];
        load_run(from + order[k] * cols, left, vectors, part);
        add_to(sum, part);
      }
      const float factor = scale_by_frequency ? 1.0f / static_cast<float>(times) : 1.0f;
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] = sum[j] * factor;
    }
    store_floats(dweight + row * cols + i, left, vectors, sum);
  }
}

// --- renorm
// --------------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kMapThreads) unclaim_kernel(int32_t* claimed, int64_t rows) {
  for (int64_t r = global_thread(); r < rows; r += global_threads()) claimed[r] = 0;
}

// The p-norm of a row, in every lane.
template <class T>
__device__ float norm(const T* w, int64_t cols, float p, int lane) {
  float sum = 0;
  if (p > 3.4e38f) {
    for (int64_t i = lane; i < cols; i += kWarp) sum = Max{}(sum, fabsf(widen(w[i])));
    return warp_reduce(sum, Max{});
  }
  if (p == 2.0f) {
    for (int64_t i = lane; i < cols; i += kWarp) sum = fmaf(widen(w[i]), widen(w[i]), sum);
    return sqrtf(warp_sum(sum));
  }
  // |w|^p as exp(p log |w|), which leaves zeros out.
  for (int64_t i = lane; i < cols; i += kWarp) {
    const float v = fabsf(widen(w[i]));
    if (v > 0) sum += expf(p * logf(v));
  }
  const float total = warp_sum(sum);
  return total > 0 ? expf(logf(total) / p) : 0.0f;
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    renorm_kernel(const int32_t* ids, T* weight, int32_t* claimed, int64_t count, int64_t rows, int64_t cols,
                  float max_norm, float p, Fault* fault, const char* op) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t i = global_thread() / kWarp; i < count; i += global_threads() / kWarp) {
    const int32_t id = ids[i];
    if (!inside(id, rows)) {
      if (lane == 0) report_out_of_range(fault, op, id, rows);
      continue;
    }
    int taken = 1;
    if (lane == 0) taken = atomicExch(&claimed[id], 1);
    if (__shfl_sync(kFullMask, taken, 0)) continue;
    T* w = weight + id * cols;
    const float length = norm(w, cols, p, lane);
    if (!(length > max_norm)) continue;
    const float factor = max_norm / (length + 1e-7f);
    for (int64_t c = lane; c < cols; c += kWarp) w[c] = narrow<T>(widen(w[c]) * factor);
  }
}

size_t rounded(size_t nbytes) { return (nbytes + 255) / 256 * 256; }

}  // namespace

void embedding(const EmbeddingArgs& a, CudaStream& s) {
  with_unit(bits_of(a.weight) | bits_of(a.y) | static_cast<uint64_t>(a.row_bytes), [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t run = a.row_bytes / static_cast<int64_t>(sizeof(Unit));
    launch(s, embedding_kernel<Unit>, map_grid(s, a.count * (run > 0 ? run : 1), 1), dim3(kMapThreads), 0, a.ids,
           static_cast<const Unit*>(a.weight), static_cast<Unit*>(a.y), a.count, a.rows, run, a.fault, "embedding");
  });
}

void embedding_backward(const EmbeddingBackwardArgs& a, CudaStream& s) {
  const size_t per_row = rounded(static_cast<size_t>(a.rows) * sizeof(Number));
  const size_t per_id = rounded(static_cast<size_t>(a.count) * sizeof(int64_t));
  auto* block = static_cast<unsigned char*>(s.scratch(256 + 2 * per_row + 2 * per_id));
  Buckets b = {};
  b.total = reinterpret_cast<Number*>(block);
  b.counts = reinterpret_cast<Number*>(block + 256);
  b.ends = reinterpret_cast<Number*>(block + 256 + per_row);
  b.found = reinterpret_cast<int64_t*>(block + 256 + 2 * per_row);
  b.order = reinterpret_cast<int64_t*>(block + 256 + 2 * per_row + per_id);
  const dim3 threads(kMapThreads), over_rows = map_grid(s, a.rows, 1), over_ids = map_grid(s, a.count, 1);
  launch(s, clear_kernel, over_rows, threads, 0, b, a.rows);
  if (a.count > 0 && a.rows > 0) {
    launch(s, count_kernel, over_ids, threads, 0, b, a.ids, a.count, a.rows, a.padding);
    launch(s, room_kernel, over_rows, threads, 0, b, a.rows);
    launch(s, place_kernel, over_ids, threads, 0, b, a.ids, a.count, a.rows, a.padding);
    launch(s, order_kernel, over_ids, threads, 0, b, a.ids);
  }
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int V = kVector<T>;
    const auto* dy = static_cast<const T*>(a.dy);
    auto* dweight = static_cast<T*>(a.dweight);
    // Rows that many ids name take longer: blocks enough that the card can even them out.
    const int64_t blocks = ceil_div(a.rows * ceil_div(a.cols, V), kMapThreads), most = 0x7fffffff;
    launch(s, sum_kernel<T>, dim3(static_cast<unsigned>(blocks < most ? blocks : most)), threads, 0, b, dy, dweight,
           a.rows, a.cols, a.scale_by_frequency, a.cols % V == 0 && vectors_fit<T, V>(dy, dweight));
  });
}

void embedding_renorm(const EmbeddingRenormArgs& a, CudaStream& s) {
  if (a.count == 0) return;
  auto* claimed = static_cast<int32_t*>(s.scratch(static_cast<size_t>(a.rows) * sizeof(int32_t) + 4));
  launch(s, unclaim_kernel, map_grid(s, a.rows, 1), dim3(kMapThreads), 0, claimed, a.rows);
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    launch(s, renorm_kernel<T>, map_grid(s, a.count * kWarp, 1), dim3(kMapThreads), 0, a.ids, static_cast<T*>(a.weight),
           claimed, a.count, a.rows, a.cols, a.max_norm, a.p, a.fault, "embedding_renorm");
  });
}

}  // namespace bnb::cuda
