// How work is cut into pieces.
#pragma once
#include "core/integer.h"

namespace bnb {
namespace {

// The grain of a parallel_for over items of `elements` each, which may be none: enough of them to make `grain`
// elements.
BNB_INLINE int64_t items_of(int64_t grain, int64_t elements) {
  return elements < 1 ? grain : ceil_div(grain, elements);
}

}  // namespace
}  // namespace bnb
