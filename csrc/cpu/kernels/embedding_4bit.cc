// Rows of a 4-bit table.
//
// Layout    Row id covers weights [id * cols, (id + 1) * cols) of the flattened table: blocks may straddle rows.
// Work      An item is a group of ids. A row is decoded in pieces that stay in L1, then rounded once into y.
// Numerics  fl(table * scale), as dequantizing the whole table gives. An id outside the table reports a fault.
#include "kernels/embedding_4bit.h"

#include "cpu/decode_4bit.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kPiece = 1024;

template <class T>
void gather_row(const Embedding4BitArgs& a, int64_t id, T* y) {
  float piece[kPiece];
  for (int64_t c = 0; c < a.cols; c += kPiece) {
    const int64_t count = a.cols - c < kPiece ? a.cols - c : kPiece;
    decode_any(a.w, id * a.cols + c, count, piece);
    for (int64_t i = 0; i < count; i++) y[c + i] = from_float<T>(piece[i]);
  }
}

}  // namespace

void embedding_4bit(const Embedding4BitArgs& a) {
  if (a.cols == 0) return;
  parallel_for(a.count, items_of(1 << 14, a.cols), [&](int64_t begin, int64_t end) {
    visit_float(a.dtype, [&](auto t) {
      using T = decltype(t);
      for (int64_t i = begin; i < end; i++) {
        const int64_t id = a.ids[i];
        T* y = static_cast<T*>(a.y) + i * a.cols;
        if (id < 0 || id >= a.rows) {
          report_fault(a.fault, FaultCode::index_out_of_range, id, a.rows);
          for (int64_t c = 0; c < a.cols; c++) y[c] = from_float<T>(0.0f);
        } else {
          gather_row(a, id, y);
        }
      }
    });
  });
}

}  // namespace bnb::BNB_ISA
