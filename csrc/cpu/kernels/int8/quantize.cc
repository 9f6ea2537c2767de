// Row-wise int8 quantization and its inverse. The absmax is an integer maximum of bit patterns, which keeps NaN
// and infinity visible; the reciprocal is correctly rounded, because a single 127 / s gives other codes.

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/work.h"
#include "kernels/int8.h"

namespace bnb::BNB_ISA {
namespace {

constexpr uint32_t kInfinity = 0x7f800000u;
constexpr float kNan = __builtin_nanf("");
// float32(1 / 127)
constexpr float kInv127 = 0x1.020408p-7f;

// About 32 K elements are 10 us of work.
BNB_INLINE int64_t rows_per_item(int64_t cols) { return items_of(1 << 15, cols); }

// The absmax of the elements below the threshold; marks the columns of the others.
template <class T>
float row_absmax(const T* a, int64_t cols, float threshold, uint8_t* mask) {
  const F32 limit = set1(threshold > 0 ? threshold : float_from_bits(kInfinity));
  I32 largest = zero_i32();
  const I32 magnitude = set1_i32(0x7fffffff);
  for (int64_t j = 0; j < cols; j += F32::width) {
    const int64_t left = cols - j;
    const F32 x = left >= F32::width ? load(a + j) : load_n(a + j, left);
    const I32 bits_of_x = bitcast(x) & magnitude;
    if (threshold > 0) {
      const Mask outlier = ge(bitcast(bits_of_x), limit);
      for (uint32_t found = bits(outlier); found; found &= found - 1)
        __atomic_store_n(&mask[j + __builtin_ctz(found)], uint8_t{1}, __ATOMIC_RELAXED);
      largest = max(largest, select(outlier, zero_i32(), bits_of_x));
    } else {
      largest = max(largest, bits_of_x);
    }
  }
  const uint32_t top = static_cast<uint32_t>(reduce_max(largest));
  return top >= kInfinity ? kNan : float_from_bits(top);
}

template <class T>
void quantize_row(const T* a, int64_t cols, float absmax, int8_t* codes) {
  if (!(absmax > 0)) {  // zero or NaN
    __builtin_memset(codes, 0, static_cast<size_t>(cols));
    return;
  }
  const float inverse = 1.0f / absmax, scale = 127.0f * inverse;
  const bool tiny = float_bits(scale) >= kInfinity;  // the reciprocal overflowed
  for (int64_t j = 0; j < cols; j += F32::width) {
    const int64_t left = cols - j;
    const F32 x = left >= F32::width ? load(a + j) : load_n(a + j, left);
    const F32 y = tiny ? x / set1(absmax) * set1(127.0f) : x * set1(scale);
    // Outlier elements are out of range; their column is cleared afterwards.
    const I32 q = to_i32(min(max(y, set1(-127.0f)), set1(127.0f)));
    if (left >= F32::width)
      store_i8(codes + j, q);
    else
      store_i8_n(codes + j, q, left);
  }
}

template <class T>
void quantize_rows(const Int8QuantizeRowsArgs& a) {
  const T* input = static_cast<const T*>(a.a);
  const bool split = a.outlier_mask != nullptr;
  if (split) __builtin_memset(a.outlier_mask, 0, static_cast<size_t>(a.cols));
  parallel_for(a.rows, rows_per_item(a.cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      a.stats[i] = row_absmax(input + i * a.cols, a.cols, a.threshold, a.outlier_mask);
      quantize_row(input + i * a.cols, a.cols, a.stats[i], a.codes + i * a.cols);
    }
  });
  if (!split) return;
  const Scratch<int64_t> outliers(a.cols);
  int64_t count = 0;
  for (int64_t j = 0; j < a.cols; j++)
    if (a.outlier_mask[j]) outliers[count++] = j;
  if (count == 0) return;
  parallel_for(a.rows, rows_per_item(count * 16), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++)
      for (int64_t o = 0; o < count; o++) a.codes[i * a.cols + outliers[o]] = 0;
  });
}

template <class T>
void dequantize_row(const int8_t* codes, float stat, int64_t cols, T* y) {
  for (int64_t j = 0; j < cols; j += F32::width) {
    const int64_t left = cols - j;
    const I32 q = left >= F32::width ? load_i8(codes + j) : load_i8_n(codes + j, left);
    const F32 value = to_f32(q) * set1(stat) * set1(kInv127);
    if (left >= F32::width)
      store(y + j, value);
    else
      store_n(y + j, value, left);
  }
}

}  // namespace

void int8_quantize_rows(const Int8QuantizeRowsArgs& a) {
  visit_float(a.dtype, [&](auto t) { quantize_rows<decltype(t)>(a); });
}

void int8_dequantize_rows(const Int8DequantizeRowsArgs& a) {
  visit_float(a.dtype, [&](auto t) {
    using T = decltype(t);
    parallel_for(a.rows, rows_per_item(a.cols), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t row = a.ids ? a.ids[i] : i;
        if (row < 0 || row >= a.table_rows) {
          report_fault(a.fault, FaultCode::index_out_of_range, row, a.table_rows);
          continue;
        }
        dequantize_row(a.codes + row * a.cols, a.stats[row], a.cols, static_cast<T*>(a.y) + i * a.cols);
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
