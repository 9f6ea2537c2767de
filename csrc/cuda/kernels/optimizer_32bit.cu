// One optimizer step with float32 states, updated where they are.
//
// Layout    state1 [n] ([2, n] for AdEMAMix), state2 [n].
// Work      cuda/optimizer_step.cuh; bound by memory (AdamW on float32: 28 bytes an element).
// Numerics  kernels/optimizer_rules.h.
// Needs     nothing beyond the contract.
#include "cuda/optimizer_step.cuh"
#include "kernels/optimizer_32bit.h"

namespace bnb::cuda {
namespace {

struct Float32States {
  static constexpr int kItems = 4, kThreads = 256;
  static constexpr int blocks_per_sm(UpdateRule) { return 3; }
  static constexpr size_t kSharedBytes = 0;
  struct Tables {
    __device__ void load() {}
  };
  template <class Rule>
  struct Raw {
    RawItems<kItems> items[Rule::kStates];
  };

  template <class Rule>
  __device__ static float* state(const OptimizerJob& job, int j) {
    if (j >= Rule::kStates - Rule::kUnsigned) return static_cast<float*>(job.state2);
    return static_cast<float*>(job.state1) + j * job.n;
  }

  template <class Rule>
  __device__ static Raw<Rule> fetch(const OptimizerJob& job, const Tile<kItems>& t) {
    Raw<Rule> raw;
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) raw.items[j] = fetch_items(state<Rule>(job, j), DType::float32, t, 0.0f);
    return raw;
  }

  template <class Rule>
  __device__ static void decode(const Tables&, const Raw<Rule>& raw, const Tile<kItems>&,
                                float (&s)[Rule::kStates][kItems]) {
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) widen_items(raw.items[j], s[j]);
  }

  template <class Rule>
  __device__ static void store(const Tables&, const OptimizerJob& job, const Tile<kItems>& t,
                               const float (&s)[Rule::kStates][kItems]) {
#pragma unroll
    for (int j = 0; j < Rule::kStates; j++) store_items(s[j], state<Rule>(job, j) + t.at, t);
  }
};

}  // namespace

void optimizer_32bit(const OptimizerArgs& a, CudaStream& s) { optimizer_step<Float32States>(a, s); }

}  // namespace bnb::cuda
