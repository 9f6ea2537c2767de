// Causal attention over pages, of the last tokens of any sequences.
//
// Layout    q [tokens, heads, dim]; of the pages, kv_heads * 16 rows of dim elements each.
// Work      an item is a block of rows of one key head (8 or the queries of one token, which read keys in place; else
// up
//           to 128, as products of matrices) times a range of keys. Ranges have fixed bounds, so that one sequence
//           alone keeps all threads busy and yet gives the same bits with any number of them.
// Numerics  float32; the ranges of a row are merged in their order.
// Needs     nothing; sequences and pages out of range are reported and give zeros.
#include "kernels/paged_attention.h"

#include "cpu/attention_rows.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kRange = 512;      // keys in a range
constexpr int64_t kEnoughItems = 8;  // blocks of a sequence that need no ranges

// One key head of one sequence. The dtype of q is looked at row by row, that of the pages is known.
template <class Page>
struct PagedHead {
  using Key = Page;
  const PagedAttentionArgs& a;
  PagedSequence at;
  const int32_t* table;  // [max_pages]
  int64_t kv_head;

  int64_t dim() const { return a.layer.dim; }
  const ScoreRule& rule() const { return a.rule; }
  int64_t group() const { return a.heads / a.layer.kv_heads; }
  int64_t head(int64_t r) const { return kv_head * group() + r % group(); }
  Span span(int64_t r) const { return causal_span(a.rule, at.keys - at.rows + r / group()); }
  int64_t offset(int64_t r) const { return ((at.first + r / group()) * a.heads + head(r)) * dim(); }

  Run<Page> run(const void* pages, const float* scales, int64_t j) const {
    const int64_t row = a.layer.row_of(table[j / kPageRows] * kPageRows + j % kPageRows, kv_head);
    return {static_cast<const Page*>(pages) + row * dim(), dim(), kPageRows - j % kPageRows,
            scales ? scales + row : nullptr};
  }
  Run<Page> keys(int64_t j) const { return run(a.layer.keys, a.layer.key_scales, j); }
  Run<Page> values(int64_t j) const { return run(a.layer.values, a.layer.value_scales, j); }

  void gather(int64_t begin, int64_t end, float factor, float* to) const {
    for (int64_t r = begin; r < end; r++, to += dim()) {
      visit_float(a.dtype, [&](auto t) {
        const auto* row = static_cast<const decltype(t)*>(a.q) + offset(r);
        for_lanes(dim(), [&](int64_t i, auto lanes) { lanes.store(to + i, lanes.load(row + i) * set1(factor)); });
      });
    }
  }
  void finish(int64_t r, const float* out, float factor, float) const {
    visit_float(a.dtype, [&](auto t) {
      auto* y = static_cast<decltype(t)*>(a.y) + offset(r);
      for_lanes(dim(), [&](int64_t i, auto lanes) { lanes.store(y + i, lanes.load(out + i) * set1(factor)); });
    });
  }
};

struct Item {
  PagedSequence at;
  const int32_t* table;
  int64_t kv_head, begin, end;  // rows
  int64_t range, ranges;        // this one, of those that the rows see
  Span keys;
  float* partial;  // of this and the following ranges; null when there is one
};

// Calls f with the items of a sequence, those of a block one after another.
template <class F>
void for_each_item(const PagedAttentionArgs& a, const PagedSequence& at, const int32_t* table, const F& f) {
  const int64_t group = a.heads / a.layer.kv_heads, rows = at.rows * group;
  const int64_t most = rows <= kFewRows ? rows : block_rows(group, a.layer.dim);
  const bool split = rows <= kFewRows || a.layer.kv_heads * ceil_div(rows, most) < kEnoughItems;
  for (int64_t kv_head = 0; kv_head < a.layer.kv_heads; kv_head++) {
    for (int64_t begin = 0; begin < rows; begin += most) {
      const int64_t end = smaller(begin + most, rows), before = at.keys - at.rows;
      const Span keys = {causal_span(a.rule, before + begin / group).from, before + (end - 1) / group + 1};
      const int64_t first = split ? keys.from / kRange : 0, ranges = split ? ceil_div(keys.to, kRange) - first : 1;
      for (int64_t i = 0; i < ranges; i++) {
        const Span range = {larger(keys.from, (first + i) * kRange), smaller(keys.to, (first + i + 1) * kRange)};
        f(Item{at, table, kv_head, begin, end, i, ranges, split ? range : keys, nullptr});
      }
    }
  }
}

// The sequence, or one without rows where the plan makes no sense.
PagedSequence checked(const PagedAttentionArgs& a, int64_t s) {
  PagedSequence at = sequence_of(a, s);
  if (!at.good) report_fault(a.fault, FaultCode::index_out_of_range, at.value, at.limit);
  if (at.rows == 0) return at;
  for (int64_t j = causal_span(a.rule, at.keys - at.rows).from / kPageRows; j * kPageRows < at.keys; j++) {
    const int64_t page = a.table[s * a.max_pages + j];
    if (page >= 0 && page < a.layer.pages) continue;
    report_fault(a.fault, FaultCode::index_out_of_range, page, a.layer.pages);
    at.rows = 0;
    return at;
  }
  return at;
}

// Rows that no sequence has.
void clear_rows(const PagedAttentionArgs& a, int64_t begin, int64_t end) {
  const int64_t nbytes = a.heads * a.layer.dim * static_cast<int64_t>(size_of(a.dtype));
  auto* y = static_cast<unsigned char*>(a.y);
  for (int64_t i = begin * nbytes; i < end * nbytes; i++) y[i] = 0;
}

template <class Page>
void run(const PagedAttentionArgs& a) {
  const int64_t dim = a.layer.dim;
  int64_t count = 0, floats = 0, covered = 0;
  const Scratch<PagedSequence> sequences(a.sequences);
  for (int64_t s = 0; s < a.sequences; s++) {
    PagedSequence& at = sequences[s] = checked(a, s);
    if (at.rows == 0) continue;
    // Each row belongs to one sequence.
    if (at.first < covered) {
      report_fault(a.fault, FaultCode::index_out_of_range, at.first, covered);
      at.rows = 0;
      continue;
    }
    clear_rows(a, covered, at.first);
    covered = at.first + at.rows;
    for_each_item(a, at, nullptr, [&](const Item& item) {
      count++;
      if (item.ranges > 1) floats += Carver::rounded(Partial::floats(item.end - item.begin, dim));
    });
  }
  clear_rows(a, covered, a.tokens);
  if (count == 0) return;

  const int64_t item_floats = Carver::rounded(count * static_cast<int64_t>(sizeof(Item) / sizeof(float)));
  const Scratch<float> memory(item_floats + floats);
  auto* items = reinterpret_cast<Item*>(memory.data());
  Carver partials = {memory + item_floats};
  int64_t n = 0, work = 0;
  for (int64_t s = 0; s < a.sequences; s++) {
    if (sequences[s].rows == 0) continue;
    for_each_item(a, sequences[s], a.table + s * a.max_pages, [&](Item item) {
      if (item.ranges > 1) item.partial = partials.take(Partial::floats(item.end - item.begin, dim));
      work += (item.end - item.begin) * (item.keys.to - item.keys.from) * dim;
      items[n++] = item;
    });
  }
  const auto head_of = [&](const Item& item) { return PagedHead<Page>{a, item.at, item.table, item.kv_head}; };
  parallel_for(count, 1 + 65536 * count / (work + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Item& item = items[i];
      const auto head = head_of(item);
      const int64_t rows = item.end - item.begin;
      const Scratch<float> own(Partial::floats(rows, dim), !item.partial);
      const Partial partial = Partial::at(own ? own : item.partial, rows, dim);
      attend(head, item.begin, item.end, item.keys, partial);
      if (own) finish_rows(head, item.begin, item.end, partial);
    }
  });
  if (floats == 0) return;
  parallel_for(count, 1 + 65536 / (dim * kFewRows + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Item& item = items[i];
      if (!item.partial || item.range != 0) continue;
      const int64_t rows = item.end - item.begin;
      const Partial all = Partial::at(item.partial, rows, dim);
      for (int64_t other = 1; other < item.ranges; other++)
        for (int64_t r = 0; r < rows; r++) merge_row(all, Partial::at(items[i + other].partial, rows, dim), r, dim);
      finish_rows(head_of(item), item.begin, item.end, all);
    }
  });
}

}  // namespace

void paged_attention(const PagedAttentionArgs& a) {
  visit_pages(a.layer.dtype, [&](auto page) { run<decltype(page)>(a); });
}

}  // namespace bnb::BNB_ISA
