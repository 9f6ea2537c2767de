// Which kernel multiplies with a 4-bit weight on a GPU, and how its blocks share the work: a pure function of the
// problem and the card.
#pragma once
#include <cstdint>

#include "core/dtype.h"
#include "core/gpu.h"
#include "core/integer.h"

namespace bnb {

// The numbers cross to JavaScript.
//   simt     exact float32, any shape; meant for few rows of x
//   small_m  matrix units, weights stream through registers, a few rows of x stay in shared memory
//   tile     matrix units, tiles of 128 rows of w (backward: columns) and 64 or 128 rows of x
//   dense    weights are decoded in slabs that matmul multiplies; any shape
enum class Linear4BitVariant : int32_t { simt, small_m, tile, dense };
inline constexpr const char* kLinear4BitVariants[] = {"simt", "small_m", "tile", "dense"};

struct Linear4BitProblem {
  int64_t m, n, k;  // as in the contracts, forward and backward
  int64_t blocksize;
  DType dtype;
  bool aligned;   // rows of x (dy) start at multiples of 16 bytes, the packed weights at one of 8
  bool backward;  // dx[m, k] = dy[m, n] w[n, k]; the sum runs over n
};

struct Linear4BitGpuPlan {
  bool possible;
  Linear4BitVariant variant;
  int32_t tokens;     // rows of x that a block takes
  int32_t outputs;    // columns of the result that a block takes at a time
  int32_t sum_warps;  // warps of a block that have the same outputs and share the sum
  int32_t splits;     // blocks that have the same outputs and share the sum
  int32_t stages;     // of the ring of x
  bool wide_table;    // the table of pairs takes 64 KB, not 32
  int64_t blocks;     // of the grid; 0 where matmul chooses
  int64_t shared_bytes;
};

// --- thresholds ------------------------------------------------------------------------------------------------------
// [e]: estimated from the design and to be measured on each card.
constexpr int64_t kLinear4BitSimtRows = 8;            // [e] exact products of more rows go through `dense`
constexpr int64_t kLinear4BitSmallRows = 32;          // what small_m is compiled for
constexpr int64_t kLinear4BitTileRows = 2048;         // [e] rows up to which decoding once per tile beats `dense`
constexpr int64_t kLinear4BitTileRowsFast = 400;      // [e] the same where cuBLASLt can use wgmma or tcgen05
constexpr int64_t kLinear4BitTileRowsBackward = 400;  // [e] the same of the gradient, on all cards
constexpr int64_t kLinear4BitWideTable = 160 << 10;   // bytes of shared memory from which the 64 KB table pays [e]
constexpr double kLinear4BitGroupCost = 1.0;          // [e] time of a group's end, in steps of a warp
constexpr double kLinear4BitSplitCost = 0.5;          // [e] added to that by split sums, per 8 rows of x
constexpr double kLinear4BitPartCost = 0.02;          // [e] and per part that the last block adds up
constexpr double kLinear4BitTileCost = 2.0;           // [e] time of a tile's begin and end, in steps of 128 k
constexpr double kLinear4BitBusy = 0.9;               // share of multiprocessors that must have work, if it can be
// Bytes of decoded weights that exist at once: half of the L2, within these [e].
constexpr int64_t kLinear4BitSlabLeast = 8 << 20, kLinear4BitSlabMost = 48 << 20;

// --- what the kernels are compiled for; they assert that they agree --------------------------------------------------
constexpr int64_t kLinear4BitRun = 64;              // k of a step
constexpr int64_t kLinear4BitRows = 32;             // rows of w of a warp, forward
constexpr int64_t kLinear4BitColumns = 128;         // columns of w of a warp, backward
constexpr int64_t kLinear4BitDepth = 16;            // rows of w of a step, backward
constexpr int64_t kLinear4BitTileOutputs = 128;     // rows of w of a tile
constexpr int64_t kLinear4BitTileStep = 128;        // k of a step of a tile
constexpr int64_t kLinear4BitTileDepth = 32;        // rows of w of a step of a tile, backward
constexpr int64_t kLinear4BitTileStages = 4;        // of the ring of dy, backward
constexpr int64_t kLinear4BitNestedCode = 1 << 10;  // bytes: the 256 values of nested scales
constexpr int64_t kLinear4BitStatic = 128;          // bytes of shared memory beside what a launch asks for
constexpr int64_t kLinear4BitCounters = 4096;       // groups that blocks may share

// Warps of a block of small_m: as many as its registers allow.
constexpr int64_t linear_4bit_warps(int64_t m, bool backward) { return m <= 16 && !backward ? 16 : 8; }
// From one row of x in shared memory to the next. What keeps the banks apart is 16 bytes beyond a multiple of 128 where
// lanes load 16 bytes, backward 32 where they load 8.
constexpr int64_t linear_4bit_pitch(int64_t span, bool backward) {
  return backward ? (span + 47) / 64 * 64 + 16 : span + 8;
}
// Sums that the warps of a block exchange: eight rows of x at a time, and backward half of the columns.
constexpr int64_t linear_4bit_exchange(int64_t warps, bool backward) {
  return warps * 8 * ((backward ? kLinear4BitColumns / 2 : kLinear4BitRows) + 4) * 4;
}
constexpr int64_t linear_4bit_table(bool wide) { return wide ? 64 << 10 : 32 << 10; }

namespace linear_4bit_detail {

constexpr bool has_matrix_units(DType t, const GpuInfo& gpu) {
  return t == DType::float16 ? gpu.cc >= 75 : t == DType::bfloat16 && gpu.cc >= 80;
}
// Kernels count runs of 32 weights in 32 bits.
constexpr bool countable(const Linear4BitProblem& p) { return p.n < (int64_t{1} << 36) / (p.k > 0 ? p.k : 1); }

// The sum (k, or n for the gradient) is cut into steps, which the warps of a block and `splits` blocks share; groups
// of outputs go round the remaining blocks. The cut of least estimated time, of those that keep the card busy if
// there are any; a tie goes to the fewer splits.
constexpr Linear4BitGpuPlan plan_small_m(const Linear4BitProblem& p, const GpuInfo& gpu) {
  Linear4BitGpuPlan best{};
  best.variant = Linear4BitVariant::small_m;
  const int64_t depth = p.backward ? kLinear4BitDepth : kLinear4BitRun;
  const int64_t per_warp = p.backward ? kLinear4BitColumns : kLinear4BitRows;
  const int64_t sum = p.backward ? p.n : p.k, outputs = p.backward ? p.k : p.n;
  if (p.m < 1 || p.m > kLinear4BitSmallRows || p.k < 1 || p.n < 1 || p.k % kLinear4BitRun != 0 || !p.aligned ||
      (p.backward && p.n % 8 != 0) || !has_matrix_units(p.dtype, gpu) || !countable(p))
    return best;
  const bool wide = gpu.shared_per_block >= kLinear4BitWideTable;
  const int64_t warps = linear_4bit_warps(p.m, p.backward), steps = ceil_div(sum, depth), eights = ceil_div(p.m, 8);
  const int64_t fixed =
      kLinear4BitStatic + linear_4bit_table(wide) + kLinear4BitNestedCode + linear_4bit_exchange(warps, p.backward);
  double best_time = 0;
  bool best_busy = false;
  for (int64_t splits = 1; splits <= 64 && splits <= steps && splits <= gpu.sms; splits++) {
    const int64_t shared = fixed + p.m * linear_4bit_pitch(ceil_div(steps, splits) * depth, p.backward) * 2;
    if (shared > gpu.shared_per_block) continue;
    for (int64_t sum_warps = warps; sum_warps >= 1; sum_warps /= 2) {
      const int64_t width = per_warp * (warps / sum_warps), groups = ceil_div(outputs, width);
      if (splits > 1 && groups > kLinear4BitCounters) continue;
      const int64_t most = gpu.sms / splits, per_split = groups < most ? groups : most;
      const int64_t rounds = ceil_div(groups, per_split), blocks = per_split * splits;
      const double each = static_cast<double>(steps) / static_cast<double>(splits * sum_warps);
      double time = kLinear4BitGroupCost + (each < 1 ? 1 : each);
      if (splits > 1)
        time += kLinear4BitSplitCost * static_cast<double>(eights) + kLinear4BitPartCost * static_cast<double>(splits);
      time *= static_cast<double>(rounds);
      const bool busy = static_cast<double>(blocks) >= kLinear4BitBusy * gpu.sms;
      if (best.possible && (best_busy != busy ? best_busy : best_time <= time)) continue;
      best_time = time;
      best_busy = busy;
      best = {.possible = true,
              .variant = Linear4BitVariant::small_m,
              .tokens = static_cast<int32_t>(eights > 2 ? 32 : 8 * eights),
              .outputs = static_cast<int32_t>(width),
              .sum_warps = static_cast<int32_t>(sum_warps),
              .splits = static_cast<int32_t>(splits),
              .stages = 1,
              .wide_table = wide,
              .blocks = blocks,
              .shared_bytes = shared};
    }
  }
  return best;
}

constexpr Linear4BitGpuPlan plan_tile(const Linear4BitProblem& p, const GpuInfo& gpu) {
  Linear4BitGpuPlan best{};
  best.variant = Linear4BitVariant::tile;
  if (p.m < 1 || p.n < 1 || p.k < 1 || p.k % kLinear4BitRun != 0 || !p.aligned || gpu.cc < 80 ||
      (p.backward && p.n % 8 != 0) || !has_matrix_units(p.dtype, gpu) || !countable(p))
    return best;
  // Backward decodes into shared memory; two blocks fit beside each other with the narrow table.
  const bool wide = !p.backward && gpu.shared_per_block >= kLinear4BitWideTable;
  // Forward, blocks of 32 want too many registers for 128 rows of x.
  const int64_t tokens = p.m <= 64 || (!p.backward && p.blocksize < kLinear4BitRun) ? 64 : 128;
  const int64_t depth = p.backward ? kLinear4BitTileDepth : kLinear4BitTileStep;
  const int64_t stages = p.backward ? kLinear4BitTileStages : tokens == 64 ? 4 : wide ? 3 : 2;
  const int64_t decoded = p.backward ? 2 * kLinear4BitTileDepth * kLinear4BitTileOutputs * 2 : 0;
  const int64_t shared =
      kLinear4BitStatic + linear_4bit_table(wide) + kLinear4BitNestedCode + decoded + stages * tokens * depth * 2;
  const int64_t sum = p.backward ? p.n : p.k, outputs = p.backward ? p.k : p.n;
  const int64_t tiles = ceil_div(p.m, tokens) * ceil_div(outputs, kLinear4BitTileOutputs);
  const int64_t steps = ceil_div(sum, kLinear4BitTileStep);
  // The height of a grid has 16 bits.
  if (shared > gpu.shared_per_block || ceil_div(outputs, kLinear4BitTileOutputs) * 16 > 65535) return best;
  double best_time = 0;
  bool best_busy = false;
  for (int64_t splits = 1; splits <= 16 && splits <= steps; splits++) {
    if (splits > 1 && tiles > kLinear4BitCounters) break;
    const int64_t blocks = tiles * splits, rounds = ceil_div(blocks, gpu.sms);
    double time = kLinear4BitTileCost + static_cast<double>(steps) / static_cast<double>(splits);
    if (splits > 1) time += 1 + kLinear4BitPartCost * 8 * static_cast<double>(splits);
    time *= static_cast<double>(rounds);
    const bool busy = static_cast<double>(blocks) >= kLinear4BitBusy * static_cast<double>(gpu.sms * rounds);
    if (best.possible && (best_busy != busy && rounds == 1 ? best_busy : best_time <= time)) continue;
    best_time = time;
    best_busy = busy;
    best = {.possible = true,
            .variant = Linear4BitVariant::tile,
            .tokens = static_cast<int32_t>(tokens),
            .outputs = static_cast<int32_t>(kLinear4BitTileOutputs),
            .sum_warps = p.backward ? 1 : 2,
            .splits = static_cast<int32_t>(splits),
            .stages = static_cast<int32_t>(stages),
            .wide_table = wide,
            .blocks = blocks,
            .shared_bytes = shared};
  }
  return best;
}

}  // namespace linear_4bit_detail

// The plan of one variant; not possible where the problem is outside what its kernel needs.
constexpr Linear4BitGpuPlan plan_linear_4bit_with(Linear4BitVariant variant, const Linear4BitProblem& p,
                                                  const GpuInfo& gpu) {
  switch (variant) {
    case Linear4BitVariant::small_m: return linear_4bit_detail::plan_small_m(p, gpu);
    case Linear4BitVariant::tile: return linear_4bit_detail::plan_tile(p, gpu);
    case Linear4BitVariant::simt: {
      Linear4BitGpuPlan r{};
      r.possible = true;
      r.variant = variant;
      r.tokens = 8;
      r.splits = 1;
      // A warp takes a column of y; of dx, a block takes 64.
      r.outputs = p.backward ? 64 : 8;
      r.sum_warps = p.backward ? 8 : 1;
      // Blocks go round; no more of them than stride_grid() launches.
      r.blocks = ceil_div(p.m, r.tokens) * ceil_div(p.backward ? p.k : p.n, r.outputs);
      if (r.blocks > int64_t{gpu.sms} * 32) r.blocks = int64_t{gpu.sms} * 32;
      return r;
    }
    case Linear4BitVariant::dense: {
      Linear4BitGpuPlan r{};
      r.possible = true;
      r.variant = variant;
      r.splits = 1;
      // Rows of w (backward: columns) of a slab. Whole warps of the decoder, and at least one.
      const int64_t other = p.backward ? p.n : p.k, all = p.backward ? p.k : p.n;
      const int64_t bytes = (other > 0 ? other : 1) * (p.dtype == DType::float32 ? 4 : 2);
      int64_t budget = gpu.l2_bytes / 2;
      if (budget < kLinear4BitSlabLeast) budget = kLinear4BitSlabLeast;
      if (budget > kLinear4BitSlabMost) budget = kLinear4BitSlabMost;
      int64_t slab = budget / bytes / 128 * 128;
      if (slab < 128) slab = 128;
      r.outputs = static_cast<int32_t>(slab < all ? slab : all);
      return r;
    }
  }
  return {};
}

constexpr Linear4BitGpuPlan plan_linear_4bit_gpu(const Linear4BitProblem& p, const GpuInfo& gpu) {
  const Linear4BitGpuPlan small = linear_4bit_detail::plan_small_m(p, gpu);
  if (small.possible) return small;
  const int64_t rows = p.backward                                         ? kLinear4BitTileRowsBackward
                       : gpu.has_cublaslt && gpu.cc >= 90 && gpu.cc < 120 ? kLinear4BitTileRowsFast
                                                                          : kLinear4BitTileRows;
  if (p.m > kLinear4BitSmallRows && p.m <= rows) {
    const Linear4BitGpuPlan tile = linear_4bit_detail::plan_tile(p, gpu);
    if (tile.possible) return tile;
  }
  return plan_linear_4bit_with(p.m <= kLinear4BitSimtRows ? Linear4BitVariant::simt : Linear4BitVariant::dense, p, gpu);
}

}  // namespace bnb
