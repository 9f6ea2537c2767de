// Positions read by CPU kernels.
#pragma once
#include "kernels/position.h"

namespace bnb::BNB_ISA {
namespace {

// Adds the position to `offset`, or reports that it is out of range.
BNB_INLINE bool resolve(const Position& p, int64_t& offset) {
  if (add_position(p, offset)) return true;
  if (p.fault->code == 0)
    *p.fault = {static_cast<int32_t>(FaultCode::index_out_of_range), p.value[0], p.limit, nullptr};
  return false;
}

}  // namespace
}  // namespace bnb::BNB_ISA
