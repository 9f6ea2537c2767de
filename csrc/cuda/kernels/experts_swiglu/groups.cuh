// Which rows an expert has, on the device: the pairs (row, choice) sorted by expert, and walks over them.
#pragma once
#include "cuda/kernel.cuh"
#include "kernels/experts_swiglu.h"

namespace bnb::cuda {

// Pairs that choose no expert of the table are left out.
struct Groups {
  const int32_t* experts;  // [pairs]: of each pair
  int32_t* order;          // [pairs]: pairs by expert, those of one in their order
  int32_t* total;          // [1]: pairs in `order`
  int32_t pairs;
};

// Calls f(expert, first, rows) for the pairs order[first .. first + rows) of one expert, within the `most` pairs of
// order from `begin` on.
template <class F>
__device__ __forceinline__ void each_run(const Groups& g, int32_t begin, int32_t most, const F& f) {
  const int32_t end = min(begin + most, *g.total);
  for (int32_t first = begin; first < end;) {
    const int32_t expert = g.experts[g.order[first]];
    int32_t rows = 1;
    while (first + rows < end && g.experts[g.order[first + rows]] == expert) rows++;
    f(expert, first, rows);
    first += rows;
  }
}

// Pairs that a warp or a block takes together: few where every pair may have an expert of its own.
constexpr int kPairs = 8;
inline int32_t pairs_together(int32_t pairs) { return pairs <= 8 * kPairs ? 1 : kPairs; }

}  // namespace bnb::cuda
