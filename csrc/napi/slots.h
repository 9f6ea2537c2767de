// The table behind JavaScript's tensor handles. A handle is -(generation << 20 | index): negative, so that a
// plain number passed where a tensor belongs is told apart, and an int32, so that V8 keeps it a small integer.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "core/quantized.h"

namespace bnb {

// What a handle stands for. Tensors lie in the table itself, the rarer and larger kinds beside it.
using SlotValue = std::variant<std::monostate, Tensor, std::unique_ptr<Quantized4Bit>, std::unique_ptr<Scales>,
                               std::unique_ptr<ExpertWeights>>;

// Calls f with each tensor that a value consists of.
template <class F>
void each_tensor(const SlotValue& value, const F& f) {
  const auto scales = [&](const Scales& s) {
    for (const Tensor* t : {&s.absmax, &s.nested_absmax, &s.nested_code, &s.offset}) f(*t);
  };
  const auto quantized = [&](const Quantized4Bit& q) {
    f(q.packed);
    scales(q.scales);
  };
  if (const auto* t = std::get_if<Tensor>(&value)) f(*t);
  if (const auto* q = std::get_if<std::unique_ptr<Quantized4Bit>>(&value)) quantized(**q);
  if (const auto* s = std::get_if<std::unique_ptr<Scales>>(&value)) scales(**s);
  if (const auto* e = std::get_if<std::unique_ptr<ExpertWeights>>(&value)) {
    f((*e)->table);
    for (const Matrix& m : (*e)->matrices) {
      if (const auto* t = std::get_if<Tensor>(&m)) f(*t);
      if (const auto* q = std::get_if<Quantized4Bit>(&m)) quantized(*q);
    }
  }
}

class Slots {
 public:
  int32_t add(SlotValue value) {
    uint32_t index;
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else {
      // The last index stays unused: with the last generation it is the handle of a disposed tensor.
      check_argument(entries_.size() < kMaxIndex - 1, "tensor",
                     "at most 1048575 tensors may be alive, got one more: dispose them or use tidy()");
      index = static_cast<uint32_t>(entries_.size());
      entries_.emplace_back();
    }
    Entry& e = entries_[index];
    e.value = std::move(value);
    live_++;
    return -static_cast<int32_t>(e.generation << 20 | index);
  }

  // Null when the handle is stale or was never one.
  SlotValue* find(int32_t handle) {
    if (handle >= 0 || handle == INT32_MIN) return nullptr;
    const uint32_t bits = static_cast<uint32_t>(-handle);
    const uint32_t index = bits & (kMaxIndex - 1);
    if (index >= entries_.size()) return nullptr;
    Entry& e = entries_[index];
    if (e.generation != bits >> 20 || e.value.index() == 0) return nullptr;
    return &e.value;
  }

  // Frees the slot; false when it was stale.
  bool remove(int32_t handle) {
    SlotValue* value = find(handle);
    if (!value) return false;
    *value = SlotValue{};
    const uint32_t index = static_cast<uint32_t>(-handle) & (kMaxIndex - 1);
    Entry& e = entries_[index];
    e.generation = e.generation == kMaxGeneration ? 1 : e.generation + 1;
    free_.push_back(index);
    live_--;
    return true;
  }

  int64_t live() const { return live_; }

 private:
  static constexpr uint32_t kMaxIndex = 1u << 20;
  static constexpr uint32_t kMaxGeneration = (1u << 11) - 1;
  struct Entry {
    SlotValue value;
    uint32_t generation = 1;
  };
  // Index 0 stays empty: -2^20, its first handle, is what a disposed tensor passes.
  std::vector<Entry> entries_ = std::vector<Entry>(1);
  std::vector<uint32_t> free_;
  int64_t live_ = 0;
};

}  // namespace bnb
