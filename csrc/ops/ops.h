// The table of contents: every native op, one declaration and one sentence. Shapes in brackets, row-major.
#pragma once
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/quantized.h"
#include "core/tensor.h"

namespace bnb {
// Of the contracts in kernels/.
enum class UnaryOp : int32_t;
enum class BinaryOp : int32_t;
enum class ReduceOp : int32_t;
enum class Distribution : int32_t;
}  // namespace bnb

namespace bnb::ops {

// ---- tensors (ops/tensors.cc)
// An uninitialized tensor.
Tensor empty(const Shape& shape, DType dtype, Device& device);
// The bytes of x from byte `offset` as another shape and dtype, sharing memory.
Tensor view(const Tensor& x, const Shape& shape, DType dtype, int64_t offset);
// A copy of x on another device (or on the same one).
Tensor to_device(const Tensor& x, Device& device);

// ---- matrix products (ops/matmul.cc)
// a[..., M, K] b[..., K, N], where b may be one matrix for all; a transposed operand is stored with its last two
// axes swapped.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b);
// The gradients of a and b that are needed.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> matmul_backward(const Tensor& a, const Tensor& b,
                                                                         const Tensor& dy, bool transpose_a,
                                                                         bool transpose_b, bool needs_a, bool needs_b);
// x[..., K] weight[N, K]^T + bias[N].
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
// The gradients of x, weight and bias that are needed.
std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>> linear_backward(
    const Tensor& x, const Tensor& weight, const Tensor& dy, bool needs_x, bool needs_weight, bool needs_bias);
// Runs multiply-adds in registers on every thread; gives [how many, a number without meaning] in float64.
Tensor fma_peak(int64_t iterations, Device& device);

// ---- softmax (ops/softmax.cc)
// softmax over the last axis, or its logarithm.
Tensor softmax(const Tensor& x, bool log);
// The gradient of x, from the result y.
Tensor softmax_backward(const Tensor& y, const Tensor& dy, bool log);

// ---- attention (ops/attention.cc)
// softmax(scale q k^T) v for q[B, T, H, D], k and v[B, S, Hkv, D]; gives y and on request lse[B, T, H] for the backward
// pass. A window and a softcap of 0 are none; sinks [H], starts [samples + 1].
std::tuple<Tensor, std::optional<Tensor>> attention(const Tensor& q, const Tensor& k, const Tensor& v, float scale,
                                                    bool causal, int64_t window, float softcap,
                                                    const std::optional<Tensor>& sinks,
                                                    const std::optional<Tensor>& starts, bool keep_lse);
// The gradients of q, k and v, and of sinks where there are any.
std::tuple<Tensor, Tensor, Tensor, std::optional<Tensor>> attention_backward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y, const Tensor& lse, const Tensor& dy,
    float scale, bool causal, int64_t window, float softcap, const std::optional<Tensor>& sinks,
    const std::optional<Tensor>& starts);

// ---- norms (ops/rms_norm.cc, ops/layer_norm.cc)
// y = x / sqrt(mean(x^2) + eps) * weight over the last axis, and 1 / sqrt(...) per row.
std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, float eps);
// dx, and dweight if it is wanted.
std::tuple<Tensor, std::optional<Tensor>> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                            const Tensor& rstd, bool wants_weight);
// y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, and mean and 1 / sqrt(...) per row.
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const std::optional<Tensor>& weight,
                                              const std::optional<Tensor>& bias, float eps);
// dx, and dweight and dbias if they are wanted.
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> layer_norm_backward(
    const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight, const Tensor& mean, const Tensor& rstd,
    bool wants_weight, bool wants_bias);

// ---- rotary embedding (ops/rope.cc)
// The pairs (i, i + R/2) of x [B, T, H, D] or [T, H, D] turned by the angles in rows offset + t of cos and sin
// [positions, R/2], or in those that the int32 tensor `position` names: of the first token, or of every one.
Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool inverse,
            const std::optional<Tensor>& position);

// ---- pages of keys and values (ops/kv_append.cc, ops/paged_attention.cc)
// q [tokens, H, D] turned; k turned and v go to the slots of keys and values [pages, Hkv, 16, D], with scales [pages,
// Hkv, 16] for int8. Without cos, sin and positions nothing turns.
Tensor kv_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keys, const Tensor& values,
                 const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                 const Tensor& slots, const std::optional<Tensor>& cos, const std::optional<Tensor>& sin,
                 const std::optional<Tensor>& positions);
// Causal attention of the last tokens of sequences over their pages; starts [S + 1], lengths [S], pages [S, maxPages].
Tensor paged_attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                       const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales,
                       const Tensor& starts, const Tensor& lengths, const Tensor& pages, float scale, int64_t window,
                       float softcap, const std::optional<Tensor>& sinks);

// ---- lora_rows (ops/lora_rows.cc)
// y + (x a[i]^T) b[i] for the rows from segment[i] to segment[i + 1]; a [adapters, rank, inputs], b [adapters, rank,
// outputs]. Other rows stay as they are.
Tensor lora_rows(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, const Tensor& segment);

// ---- clamp (ops/clamp.cc)
// min(max(x, low), high).
Tensor clamp(const Tensor& x, double low, double high);
Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high);

// ---- softplus (ops/softplus.cc)
// log(1 + exp(beta x)) / beta, and x where beta x > threshold.
Tensor softplus(const Tensor& x, double beta, double threshold);
Tensor softplus_backward(const Tensor& dy, const Tensor& x, double beta, double threshold);

// ---- swiglu (ops/swiglu.cc)
// silu(gate) * up.
Tensor swiglu(const Tensor& gate, const Tensor& up);
// dgate and dup.
std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up);

// ---- embedding (ops/embedding.cc)
// Rows of weight [V, D] by int32 ids [...]: [..., D].
Tensor embedding(const Tensor& ids, const Tensor& weight);
// The gradient [rows, D] of weight; none for the row `padding` unless that is -1.
Tensor embedding_backward(const Tensor& dy, const Tensor& ids, int64_t rows, int64_t padding, bool scale_by_frequency);
// Scales the rows of weight that ids name, in place, to at most max_norm in the p-norm.
void embedding_renorm(const Tensor& ids, const Tensor& weight, float max_norm, float p);

// ---- cross entropy (ops/cross_entropy.cc)
// The mean loss of logits [..., V] against int32 targets [...], log-sum-exp per row, and the rows that count.
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& targets, int32_t ignore);
// dlogits from the gradient of the loss and what the forward pass returned.
Tensor cross_entropy_backward(const Tensor& dloss, const Tensor& logits, const Tensor& targets, const Tensor& lse,
                              const Tensor& count, int32_t ignore);

// ---- sample_token (ops/sample_token.cc)
// A token int32 [...] drawn from each row of logits [..., V]; -1 where none can be.
Tensor sample_token(const Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
                    const std::optional<Tensor>& position);

// ---- sample_tokens (ops/sample_tokens.cc)
// One token per row of logits [rows, n], each with parameters of its own, and penalties, biases and a mask before;
// gives ids, their log-probabilities, and the `best` most likely ids with theirs. Adds the draws to `counts`.
std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>> sample_tokens(
    const Tensor& logits, const Tensor& temperature, const Tensor& top_p, const Tensor& min_p, const Tensor& typical_p,
    const Tensor& repetition, const Tensor& presence, const Tensor& frequency, const Tensor& top_k, const Tensor& seed,
    const Tensor& step, const std::optional<Tensor>& counts, const std::optional<Tensor>& slots,
    const std::optional<Tensor>& bias_offsets, const std::optional<Tensor>& bias_ids,
    const std::optional<Tensor>& bias_values, const std::optional<Tensor>& mask, bool wants_logprobs, int64_t best);

// ---- blockwise quantization (ops/codebooks.cc, ops/quantize_4bit.cc, ops/quantize_blockwise.cc)
// A built-in code table: of a 4-bit type [16], or a dynamic map [256].
Tensor codebook(Codebook which, Device& device);
// Packed nibbles [bytes / size of storage, 1] and scales [blocks]; absmax and out, when given, are written instead.
std::tuple<Tensor, Tensor> quantize_4bit(const Tensor& x, int64_t blocksize, QuantType type, DType storage,
                                         const std::optional<Tensor>& absmax, const std::optional<Tensor>& out);
// The values of a 4-bit tensor as dtype.
Tensor dequantize_4bit(const Quantized4Bit& w, DType dtype, const std::optional<Tensor>& out);
// Codes uint8 of x's shape and scales [blocks] of x - offset, with the given map or a built-in dynamic one.
std::tuple<Tensor, Tensor> quantize_blockwise(const Tensor& x, const std::optional<Tensor>& code, bool is_signed,
                                              const std::optional<Tensor>& offset, int64_t blocksize,
                                              const std::optional<Tensor>& absmax, const std::optional<Tensor>& out);
// A handle over the scales of blocks, shared by both widths; shares the memory of its tensors. Its users check the
// blocksize, whose limits differ.
Scales block_scales(const Tensor& absmax, const std::optional<Tensor>& nested_absmax,
                    const std::optional<Tensor>& nested_code, const std::optional<Tensor>& offset, int64_t blocksize,
                    int64_t nested_blocksize);
// A handle over a packed 4-bit tensor and its scales; shares their memory.
Quantized4Bit quantized_4bit(const Tensor& packed, const Scales& scales, const Shape& shape, QuantType type,
                             DType dtype, ActivationQuant activations);
// code[codes] * scale as dtype.
Tensor dequantize_blockwise(const Tensor& codes, const Tensor& code, const Scales& scales, DType dtype,
                            const std::optional<Tensor>& out);
// Double quantized scales as float32 [blocks].
Tensor expand_scales(const Scales& scales);
// The mean of a float32 tensor, summed in float64 and rounded once.
Tensor mean_float64(const Tensor& x);
// ---- elementwise (ops/elementwise.cc, kernels/elementwise.h)
// y = f(x); `exponent` is of pow.
Tensor unary(UnaryOp op, const Tensor& x, double exponent);
// dx = dy * f'(x), from x or from y (see UnaryOp).
Tensor unary_backward(UnaryOp op, const Tensor& dy, const Tensor& saved, double exponent);
// y = f(a, b) with NumPy broadcasting; without b, `number` takes its place.
Tensor binary(BinaryOp op, const Tensor& a, const std::optional<Tensor>& b, double number);
// [da, db], each at the shape of its operand; mul may leave out the operand whose partner needs no gradient.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> binary_backward(BinaryOp op, const Tensor& dy,
                                                                         const std::optional<Tensor>& a,
                                                                         const std::optional<Tensor>& b, double number,
                                                                         const Shape& a_shape, const Shape& b_shape,
                                                                         bool needs_a, bool needs_b);

// ---- reductions (ops/reduce.cc)
// The sum, mean, maximum or minimum over all elements or one axis; float32 inside, the dtype of x outside.
Tensor reduce(ReduceOp op, const Tensor& x, bool all, int32_t axis, bool keep_dims);
// dx [shape]; x and y only for max and min.
Tensor reduce_backward(ReduceOp op, const Tensor& dy, const std::optional<Tensor>& x, const std::optional<Tensor>& y,
                       const Shape& shape, bool all, int32_t axis);
// int32 index of the first maximum.
Tensor argmax(const Tensor& x, bool all, int32_t axis, bool keep_dims);
// The sum over the axes along which `shape` was broadcast to the shape of x; shares memory when there are none.
Tensor sum_to(const Tensor& x, const Shape& shape, DType dtype);

// ---- moving elements (ops/copy.cc, ops/cast.cc)
// x with its axes in another order; shares memory when only axes of size 1 move.
Tensor permute(const Tensor& x, const Shape& axes);
// x repeated to a larger shape; shares memory when nothing repeats.
Tensor broadcast_to(const Tensor& x, const Shape& shape);
// Entries [start, end) of an axis; shares memory when no longer axis stands before it.
Tensor slice(const Tensor& x, int32_t axis, int64_t start, int64_t end);
// Zeros of `shape` with dy at `start`.
Tensor slice_backward(const Tensor& dy, const Shape& shape, int32_t axis, int64_t start);
// The tensors one after another along an axis.
Tensor concat(const std::vector<Tensor>& xs, int32_t axis);
// Overwrites entries of dst along an axis, from `start` (plus the device's `position`) on, by src.
void copy_into(const Tensor& dst, const Tensor& src, int32_t axis, int64_t start,
               const std::optional<Tensor>& position);
// Every element `value`.
Tensor full(const Shape& shape, double value, DType dtype, Device& device);
// x in another dtype; shares memory when it is the same.
Tensor cast(const Tensor& x, DType dtype);

// ---- random numbers (ops/random_fill.cc, ops/dropout.cc)
// Random elements from block `offset` of the stream of `seed`; bounds as in kernels/random_fill.h.
Tensor random_fill(const Shape& shape, DType dtype, Device& device, Distribution distribution, double low, double high,
                   int64_t seed, int64_t offset);
// x / (1 - p) where the random word is at least p, else 0; the gradient is the same op on dy.
Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t offset);
// ---- LLM.int8() (ops/int8.cc)
// Row-wise codes [..., K], absmax [rows], and with a threshold the mask [K] of outlier columns.
std::tuple<Tensor, Tensor, std::optional<Tensor>> int8_quantize_rows(const Tensor& a, double threshold);
// codes * stats / 127, of every row or of the rows in ids.
Tensor int8_dequantize_rows(const Tensor& codes, const Tensor& stats, const std::optional<Tensor>& ids, DType dtype);
// The exact int32 product a[..., K] @ b[N, K]^T.
Tensor int8_matmul(const Tensor& a, const Tensor& b);
// An int32 product rescaled by the statistics of its rows and columns, plus a bias.
Tensor int8_dequantize_product(const Tensor& c, const Tensor& row_stats, const Tensor& col_stats,
                               const std::optional<Tensor>& bias, DType dtype);
// The linear layer: quantizes x, multiplies codes, adds outlier columns in floating point.
Tensor int8_linear(const Tensor& x, const Tensor& weight_codes, const Tensor& weight_stats,
                   const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, double threshold);
// Its gradient for x where the float weight is gone: dy @ (codes * stats / 127).
Tensor int8_linear_backward(const Tensor& dy, const Tensor& weight_codes, const Tensor& weight_stats);

// ---- optimizers (ops/optimizer.cc)
// Updates all parameters of a step in place: per parameter 14 numbers in `options` and in `tensors` p, g, state1,
// state2, absmax1, absmax2, unormVec, without those that its rule lacks. nonFiniteCount [1] float64 grows.
void optimizer_step(const std::vector<Tensor>& tensors, const std::vector<double>& options, const Tensor& nonfinite);
// Clips gradients in place by their joint norm (2-norm or largest magnitude) or by value; the norm before, [].
Tensor clip_gradients(const std::vector<Tensor>& gradients, int32_t rule, double limit);

// ---- 4-bit linear (ops/linear_4bit.cc, ops/linear_4bit_lora.cc, ops/embedding_4bit.cc)
// x @ dequantize(weight)^T + bias + residual in the dtype of x.
Tensor linear_4bit(const Tensor& x, const Quantized4Bit& weight, const std::optional<Tensor>& bias,
                   const std::optional<Tensor>& residual);
// x @ dequantize(w)^T for two or three weights of as many inputs.
std::tuple<Tensor, Tensor, std::optional<Tensor>> linear_4bit_each(const Tensor& x, const Quantized4Bit& first,
                                                                   const Quantized4Bit& second,
                                                                   const std::optional<Quantized4Bit>& third);
// silu(x @ dequantize(gate)^T) * (x @ dequantize(up)^T).
Tensor linear_4bit_swiglu(const Tensor& x, const Quantized4Bit& gate, const Quantized4Bit& up);
// linear_4bit without a residual, written into out [..., N], any float dtype.
void linear_4bit_into(const Tensor& x, const Quantized4Bit& weight, const std::optional<Tensor>& bias,
                      const Tensor& out);
// dx = dy @ dequantize(weight) in the dtype of dy and dbias = the sum of dy's rows in the dtype of the bias.
std::tuple<std::optional<Tensor>, std::optional<Tensor>> linear_4bit_backward(const Tensor& dy,
                                                                              const Quantized4Bit& weight,
                                                                              DType bias_dtype, bool needs_x,
                                                                              bool needs_bias);
// linear_4bit + scaling * dropout(x, p) a^T b^T for an adapter a [r, K], b [N, r]; and the scaled product [rows, r]
// before b, which the gradients take as `low`.
std::tuple<Tensor, Tensor> linear_4bit_lora(const Tensor& x, const Quantized4Bit& weight,
                                            const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                                            const Tensor& a, const Tensor& b, double scaling, double p, int64_t seed,
                                            int64_t offset);
// dx, dbias, da and db, those that are wanted.
std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>>
linear_4bit_lora_backward(const Tensor& dy, const Tensor& x, const Quantized4Bit& weight, const Tensor& low,
                          const Tensor& a, const Tensor& b, double scaling, double p, int64_t seed, int64_t offset,
                          DType bias_dtype, bool needs_x, bool needs_bias, bool needs_a, bool needs_b);
// Rows of a 4-bit table by int32 ids, as dtype.
Tensor embedding_4bit(const Tensor& ids, const Quantized4Bit& weight, DType dtype);

// ---- experts (ops/choose_experts.cc, ops/experts_swiglu.cc)
// Shares and experts [tokens, k]: the k largest of softmax(logits[tokens, experts]), on request divided by their sum.
std::tuple<Tensor, Tensor> choose_experts(const Tensor& logits, int64_t k, bool normalize);
// The gradient of the logits.
Tensor choose_experts_backward(const Tensor& dshares, const Tensor& logits, const Tensor& shares, const Tensor& experts,
                               bool normalize);
// The matrices of gated MLPs: gates and ups [width, hidden], downs [hidden, width]; all floats of one dtype, or 4-bit.
ExpertWeights expert_weights(const std::vector<Matrix>& gates, const std::vector<Matrix>& ups,
                             const std::vector<Matrix>& downs);
// residual + the sum of share * down(silu(gate(x)) * up(x)) over the experts that a row chose.
Tensor experts_swiglu(const Tensor& x, const Tensor& shares, const Tensor& experts, const ExpertWeights& weights,
                      const std::optional<Tensor>& residual);
// The gradients of x and of the shares.
std::tuple<Tensor, Tensor> experts_swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& shares,
                                                   const Tensor& experts, const ExpertWeights& weights);

// ---- plans (ops/plans.cc): records of numbers both ways, in the order of src/ops/plans.ts
// Which way the CPU takes for m rows of k inputs: Linear4BitPlan.
int64_t linear_4bit_plan(int64_t m, int64_t k);
// What a GPU does: Linear4BitGpuPlan, for a card that need not be there.
std::vector<double> linear_4bit_gpu_plan(const std::vector<double>& problem);
// The same for two or three weights of one x: whether it is one launch, the bytes of shared memory, and the blocks of
// each product.
std::vector<double> linear_4bit_group_gpu_plan(const std::vector<double>& group);
// And for matrices: MatmulPlan.
std::vector<double> matmul_gpu_plan(const std::vector<double>& problem);
// Blocks of a kernel that a multiprocessor holds at once, from its threads, their registers, and its shared memory.
int64_t resident_blocks(const std::vector<double>& kernel);

}  // namespace bnb::ops
