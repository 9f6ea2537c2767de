// Rows of a table by id, and the gradient of the table.
//
// Layout    weight and dweight [rows, cols], y and dy [count, cols].
// Work      forward: a copy per id. Backward: the ids are sorted by counting, then every table row, its
//           zeros included, is written once by the item that owns it. Renorm: the named rows are marked
//           first, so that a repeated id is scaled once.
// Numerics  a row of dweight is added up in float32 in the order of the ids and rounded once: the same bits
//           for any number of threads.
// Needs     nothing; ids outside the table are reported forward and passed over backward.
#include "kernels/embedding.h"

#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;

BNB_INLINE bool inside(int32_t id, int64_t rows) { return id >= 0 && id < rows; }

BNB_INLINE int64_t grain_of(int64_t cost) { return cost < kChunkElements ? kChunkElements / (cost < 1 ? 1 : cost) : 1; }

// Vectors of one pass over a row: enough to hide the latency of the additions.
constexpr int kVectors = 4;

// out = the sum of dy[order[begin..end)] times factor, kVectors vectors at a time.
template <class T>
void sum_row(const T* dy, const int64_t* order, int64_t begin, int64_t end, int64_t cols, F32 factor, T* out) {
  constexpr int64_t kStep = kVectors * F32::width;
  int64_t i = 0;
  for (; i + kStep <= cols; i += kStep) {
    F32 sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) sum[v] = zero();
    for (int64_t k = begin; k < end; k++) {
      const T* row = dy + order[k] * cols + i;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) sum[v] = sum[v] + load(row + v * F32::width);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) store(out + i + v * F32::width, sum[v] * factor);
  }
  for_lanes(cols - i, [&](int64_t j, auto lanes) {
    F32 sum = zero();
    for (int64_t k = begin; k < end; k++) sum = sum + lanes.load(dy + order[k] * cols + i + j);
    lanes.store(out + i + j, sum * factor);
  });
}

template <class T>
void backward(const EmbeddingBackwardArgs& a) {
  // starts[r]..starts[r + 1] bound the positions of row r in `order`.
  const Scratch<int64_t> starts(a.rows + 2);
  const Scratch<int64_t> order(a.count);
  for (int64_t r = 0; r < a.rows + 2; r++) starts[r] = 0;
  const auto counts = [&](int32_t id) { return inside(id, a.rows) && id != a.padding; };
  // Counted two places up, so that filling `order` leaves the bounds one place up.
  for (int64_t i = 0; i < a.count; i++) {
    if (counts(a.ids[i])) starts[a.ids[i] + 2]++;
  }
  for (int64_t r = 2; r < a.rows + 2; r++) starts[r] += starts[r - 1];
  for (int64_t i = 0; i < a.count; i++) {
    if (counts(a.ids[i])) order[starts[a.ids[i] + 1]++] = i;
  }
  const int64_t per_row = a.cols * (1 + a.count / (a.rows < 1 ? 1 : a.rows));
  parallel_for(a.rows, grain_of(per_row), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t times = starts[r + 1] - starts[r];
      const F32 factor = set1(a.scale_by_frequency && times > 0 ? 1.0f / static_cast<float>(times) : 1.0f);
      sum_row(static_cast<const T*>(a.dy), order, starts[r], starts[r + 1], a.cols, factor,
              static_cast<T*>(a.dweight) + r * a.cols);
    }
  });
}

template <class T>
float norm(const T* w, int64_t cols, float p) {
  F32 sum = zero();
  if (p == __builtin_inff()) {
    for_lanes(cols, [&](int64_t i, auto lanes) { sum = max(sum, abs(lanes.load(w + i))); });
    return reduce_max(sum);
  }
  if (p == 2.0f) {
    for_lanes(cols, [&](int64_t i, auto lanes) { sum = fma(lanes.load(w + i), lanes.load(w + i), sum); });
    return __builtin_sqrtf(reduce_add(sum));
  }
  // |w|^p as exp(p log |w|), which leaves zeros out.
  const F32 power = set1(p);
  for_lanes(cols, [&](int64_t i, auto lanes) {
    const F32 v = abs(lanes.load(w + i));
    sum = sum + select(lt(zero(), v), exp(power * log(v)), zero());
  });
  const float total = reduce_add(sum);
  return total > 0 ? reduce_max(exp(log(set1(total)) / power)) : 0;
}

template <class T>
void renorm(const EmbeddingRenormArgs& a) {
  const Scratch<unsigned char> named(a.rows);
  __builtin_memset(named, 0, static_cast<size_t>(a.rows));
  for (int64_t i = 0; i < a.count; i++) {
    if (inside(a.ids[i], a.rows)) {
      named[a.ids[i]] = 1;
    } else {
      report_fault(a.fault, FaultCode::index_out_of_range, a.ids[i], a.rows);
    }
  }
  parallel_for(a.rows, grain_of(a.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      if (!named[r]) continue;
      T* w = static_cast<T*>(a.weight) + r * a.cols;
      const float length = norm(w, a.cols, a.p);
      if (!(length > a.max_norm)) continue;
      const F32 factor = set1(a.max_norm / (length + 1e-7f));
      for_lanes(a.cols, [&](int64_t i, auto lanes) { lanes.store(w + i, lanes.load(w + i) * factor); });
    }
  });
}

}  // namespace

void embedding(const EmbeddingArgs& a) {
  parallel_for(a.count, grain_of(a.row_bytes / 4), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int32_t id = a.ids[i];
      const bool known = inside(id, a.rows);
      if (!known) report_fault(a.fault, FaultCode::index_out_of_range, id, a.rows);
      if (a.row_bytes == 0) continue;  // tensors without elements may have no memory
      char* y = static_cast<char*>(a.y) + i * a.row_bytes;
      const size_t nbytes = static_cast<size_t>(a.row_bytes);
      if (known) {
        __builtin_memcpy(y, static_cast<const char*>(a.weight) + id * a.row_bytes, nbytes);
      } else {
        __builtin_memset(y, 0, nbytes);
      }
    }
  });
}

void embedding_backward(const EmbeddingBackwardArgs& a) {
  visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a); });
}

void embedding_renorm(const EmbeddingRenormArgs& a) {
  visit_float(a.dtype, [&](auto t) { renorm<decltype(t)>(a); });
}

}  // namespace bnb::BNB_ISA
