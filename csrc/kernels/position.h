// A position that only the device knows: where the next token of a cache goes. A recorded graph reads it anew at every
// replay, where a number would be the one of the recording.
#pragma once
#include "core/kernel.h"

namespace bnb {

struct Position {
  const int32_t* value;  // [1], or null: position 0
  int64_t limit;         // the value must be in [0, limit), or the kernel reports it and does nothing
  Fault* fault;
};

// Adds the position to `offset`; false when it is out of range.
BNB_INLINE bool add_position(const Position& p, int64_t& offset) {
  if (!p.value) return true;
  const int64_t at = p.value[0];
  if (at < 0 || at >= p.limit) return false;
  offset += at;
  return true;
}

}  // namespace bnb
