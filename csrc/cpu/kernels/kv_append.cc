// Queries turned, and keys and values on their way into pages.
//
// Layout    q, k, v [tokens, heads, dim]; a token's place in the pages is its slot, a row of dim elements a head.
// Work      an item is a run of tokens.
// Numerics  turned in float32 and rounded once to the dtype of the pages; int8 codes are rint(x * (127 / absmax)) of a
//           head, with the scale absmax / 127, which is NaN where the head has one.
// Needs     nothing; positions and slots out of range are reported, and write nothing.
#include "kernels/kv_append.h"

#include "cpu/turn.h"
#include "cpu/work.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 16384;
constexpr float kSmallest = 1e-30f;  // below it, 127 / absmax could be infinite: codes are 0

// One head of a token, x [dim].
template <class Page>
void put(const float* x, int64_t dim, Page* to, float*, int64_t) {
  for_lanes(dim, [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.load(x + i)); });
}
void put(const float* x, int64_t dim, int8_t* to, float* scales, int64_t row) {
  F32 most = zero(), poison = zero();
  for_lanes(dim, [&](int64_t i, auto lanes) {
    const F32 v = abs(lanes.load(x + i));
    most = max(v, most);
    poison += v * zero();  // NaN where v is NaN or infinite
  });
  const float absmax = reduce_max(most) + reduce_add(poison);
  scales[row] = absmax / 127.0f;
  const F32 factor = set1(absmax > kSmallest ? 127.0f / absmax : 0.0f);
  for (int64_t i = 0; i < dim; i += F32::width) {
    const int64_t n = dim - i < F32::width ? dim - i : F32::width;
    store_i8_n(to + i, to_i32(load_n(x + i, n) * factor), n);
  }
}

template <class T, class Page>
void append(const KvAppendArgs& a) {
  const KvPages& layer = a.layer;
  const int64_t dim = layer.dim, kv_heads = layer.kv_heads;
  const auto *q = static_cast<const T*>(a.q), *k = static_cast<const T*>(a.k), *v = static_cast<const T*>(a.v);
  parallel_for(a.tokens, items_of(kChunkElements, (a.heads + 2 * kv_heads) * dim), [&](int64_t begin, int64_t end) {
    const Scratch<float> head(dim);
    for (int64_t t = begin; t < end; t++) {
      const Turn turn = turn_at(a.angles, a.angles.pairs > 0 ? a.positions[t] : 0, a.fault);
      turn_heads(turn, q + t * a.heads * dim, static_cast<T*>(a.y) + t * a.heads * dim, a.heads, dim, 1.0f);
      const int64_t slot = a.slots[t];
      if (slot >= layer.slots()) report_fault(a.fault, FaultCode::index_out_of_range, slot, layer.slots());
      if (slot < 0 || slot >= layer.slots()) continue;
      for (int64_t h = 0; h < kv_heads; h++) {
        const int64_t row = layer.row_of(slot, h), from = (t * kv_heads + h) * dim;
        turn_heads(turn, k + from, head.data(), 1, dim, 1.0f);
        put(head, dim, static_cast<Page*>(layer.keys) + row * dim, layer.key_scales, row);
        turn_heads(Turn{}, v + from, head.data(), 1, dim, 1.0f);
        put(head, dim, static_cast<Page*>(layer.values) + row * dim, layer.value_scales, row);
      }
    }
  });
}

}  // namespace

void kv_append(const KvAppendArgs& a) {
  visit_float(a.dtype,
              [&](auto t) { visit_pages(a.layer.dtype, [&](auto page) { append<decltype(t), decltype(page)>(a); }); });
}

}  // namespace bnb::BNB_ISA
