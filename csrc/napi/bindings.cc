// One line per op of ops.h. The names in parentheses appear in error messages.

#include "napi/bind.h"
#include "ops/ops.h"

namespace bnb {

void define_ops(Env& env, napi_value exports) {
  const Binder b{env, exports};

  // tensors
  b.bind<&ops::empty>("empty(shape, dtype, device)");
  b.bind<&ops::view>("view(x, shape, dtype, offset)");
  b.bind<&ops::to_device>("toDevice(x, device)");

  // matrix products
  b.bind<&ops::matmul>("matmul(a, b, transposeA, transposeB)");
  b.bind<&ops::matmul_backward>("matmulBackward(a, b, dy, transposeA, transposeB, needsA, needsB)");
  b.bind<&ops::linear>("linear(x, weight, bias)");
  b.bind<&ops::linear_backward>("linearBackward(x, weight, dy, needsX, needsWeight, needsBias)");
  b.bind<&ops::fma_peak>("fmaPeak(iterations, device)");

  // softmax
  b.bind<&ops::softmax>("softmax(x, log)");
  b.bind<&ops::softmax_backward>("softmaxBackward(y, dy, log)");

  // attention
  b.bind<&ops::attention>("attention(q, k, v, scale, causal, window, softcap, sinks, starts, keepLse)");
  b.bind<&ops::attention_backward>(
      "attentionBackward(q, k, v, y, lse, dy, scale, causal, window, softcap, sinks, starts)");

  // rms_norm
  b.bind<&ops::rms_norm>("rmsNorm(x, weight, eps)");
  b.bind<&ops::rms_norm_backward>("rmsNormBackward(dy, x, weight, rstd, wantsWeight)");

  // layer_norm
  b.bind<&ops::layer_norm>("layerNorm(x, weight, bias, eps)");
  b.bind<&ops::layer_norm_backward>("layerNormBackward(dy, x, weight, mean, rstd, wantsWeight, wantsBias)");

  // rope
  b.bind<&ops::rope>("rope(x, cos, sin, offset, inverse, position)");

  // pages of keys and values
  b.bind<&ops::kv_append>("kvAppend(q, k, v, keys, values, keyScales, valueScales, slots, cos, sin, positions)");
  b.bind<&ops::paged_attention>(
      "pagedAttention(q, keys, values, keyScales, valueScales, starts, lengths, pages, scale, window, softcap, sinks)");

  // lora_rows
  b.bind<&ops::lora_rows>("loraRows(y, x, a, b, segment)");

  // clamp
  b.bind<&ops::clamp>("clamp(x, low, high)");
  b.bind<&ops::clamp_backward>("clampBackward(dy, x, low, high)");

  // softplus
  b.bind<&ops::softplus>("softplus(x, beta, threshold)");
  b.bind<&ops::softplus_backward>("softplusBackward(dy, x, beta, threshold)");

  // swiglu
  b.bind<&ops::swiglu>("swiglu(gate, up)");
  b.bind<&ops::swiglu_backward>("swigluBackward(dy, gate, up)");

  // embedding
  b.bind<&ops::embedding>("embedding(ids, weight)");
  b.bind<&ops::embedding_backward>("embeddingBackward(dy, ids, rows, padding, scaleByFrequency)");
  b.bind<&ops::embedding_renorm>("embeddingRenorm(ids, weight, maxNorm, normType)");

  // cross_entropy
  b.bind<&ops::cross_entropy>("crossEntropy(logits, targets, ignoreIndex)");
  b.bind<&ops::cross_entropy_backward>("crossEntropyBackward(dloss, logits, targets, lse, count, ignoreIndex)");

  // sample_token
  b.bind<&ops::sample_token>("sampleToken(logits, temperature, topK, topP, seed, step, position)");

  // sample_tokens
  b.bind<&ops::sample_tokens>(
      "sampleTokens(logits, temperature, topP, minP, typicalP, repetition, presence, frequency, topK, seed, step, "
      "counts, slots, bias.offsets, bias.ids, bias.values, mask, logprobs, best)");

  // blockwise quantization
  b.bind<&ops::codebook>("codebook(which, device)");
  b.bind<&ops::quantize_4bit>("quantize4bit(A, blocksize, quantType, quantStorage, absmax, out)");
  b.bind<&ops::dequantize_4bit>("dequantize4bit(A, dtype, out)");
  b.bind<&ops::quantize_blockwise>("quantizeBlockwise(A, code, isSigned, offset, blocksize, absmax, out)");
  b.bind<&ops::block_scales>("blockScales(absmax, nestedAbsmax, nestedCode, offset, blocksize, nestedBlocksize)");
  b.bind<&ops::quantized_4bit>("quantized4bit(packed, scales, shape, type, dtype, activations)");
  b.bind<&ops::dequantize_blockwise>("dequantizeBlockwise(A, code, scales, dtype, out)");
  b.bind<&ops::expand_scales>("expandScales(scales)");
  b.bind<&ops::mean_float64>("meanFloat64(x)");
  // elementwise
  b.bind<&ops::unary>("unary(op, x, exponent)");
  b.bind<&ops::unary_backward>("unaryBackward(op, dy, saved, exponent)");
  b.bind<&ops::binary>("binary(op, a, b, number)");
  b.bind<&ops::binary_backward>("binaryBackward(op, dy, a, b, number, aShape, bShape, needsA, needsB)");

  // reductions
  b.bind<&ops::reduce>("reduce(op, x, all, axis, keepDims)");
  b.bind<&ops::reduce_backward>("reduceBackward(op, dy, x, y, shape, all, axis)");
  b.bind<&ops::argmax>("argmax(x, all, axis, keepDims)");
  b.bind<&ops::sum_to>("sumTo(x, shape, dtype)");

  // moving elements
  b.bind<&ops::permute>("permute(x, axes)");
  b.bind<&ops::broadcast_to>("broadcastTo(x, shape)");
  b.bind<&ops::slice>("slice(x, axis, start, end)");
  b.bind<&ops::slice_backward>("sliceBackward(dy, shape, axis, start)");
  b.bind<&ops::concat>("concat(xs, axis)");
  b.bind<&ops::copy_into>("copyInto(dst, src, axis, start, position)");
  b.bind<&ops::full>("full(shape, value, dtype, device)");
  b.bind<&ops::cast>("cast(x, dtype)");

  // random numbers
  b.bind<&ops::random_fill>("randomFill(shape, dtype, device, distribution, low, high, seed, offset)");
  b.bind<&ops::dropout>("dropout(x, p, seed, offset)");

  // optimizers
  b.bind<&ops::optimizer_step>("optimizerStep(tensors, options, nonFiniteCount)");
  b.bind<&ops::clip_gradients>("clipGradients(gradients, rule, limit)");

  // 4-bit linear
  b.bind<&ops::linear_4bit>("linear4bit(x, weight, bias, residual)");
  b.bind<&ops::linear_4bit_each>("linear4bitEach(x, first, second, third)");
  b.bind<&ops::linear_4bit_swiglu>("linear4bitSwiglu(x, gate, up)");
  b.bind<&ops::linear_4bit_into>("linear4bitInto(x, weight, bias, out)");
  b.bind<&ops::linear_4bit_backward>("linear4bitBackward(dy, weight, biasDtype, needsX, needsBias)");
  b.bind<&ops::linear_4bit_lora>("linear4bitLora(x, weight, bias, residual, a, b, scaling, p, seed, offset)");
  b.bind<&ops::linear_4bit_lora_backward>(
      "linear4bitLoraBackward(dy, x, weight, low, a, b, scaling, p, seed, offset, biasDtype, needsX, needsBias, "
      "needsA, "
      "needsB)");
  b.bind<&ops::embedding_4bit>("embedding4bit(ids, weight, dtype)");

  // experts
  b.bind<&ops::choose_experts>("chooseExperts(logits, k, normalize)");
  b.bind<&ops::choose_experts_backward>("chooseExpertsBackward(dshares, logits, shares, experts, normalize)");
  b.bind<&ops::expert_weights>("expertWeights(gates, ups, downs)");
  b.bind<&ops::experts_swiglu>("expertsSwiglu(x, shares, experts, weights, residual)");
  b.bind<&ops::experts_swiglu_backward>("expertsSwigluBackward(dy, x, shares, experts, weights)");

  // plans
  b.bind<&ops::linear_4bit_plan>("linear4bitPlan(m, k)");
  b.bind<&ops::linear_4bit_gpu_plan>("linear4bitGpuPlan(problem)");
  b.bind<&ops::linear_4bit_group_gpu_plan>("linear4bitGroupGpuPlan(group)");
  b.bind<&ops::matmul_gpu_plan>("matmulGpuPlan(problem)");
  b.bind<&ops::resident_blocks>("residentBlocks(kernel)");

  // LLM.int8()
  b.bind<&ops::int8_quantize_rows>("int8QuantizeRows(A, threshold)");
  b.bind<&ops::int8_dequantize_rows>("int8DequantizeRows(codes, stats, ids, dtype)");
  b.bind<&ops::int8_matmul>("int8Matmul(A, B)");
  b.bind<&ops::int8_dequantize_product>("int8DequantizeProduct(A, rowStats, colStats, bias, dtype)");
  b.bind<&ops::int8_linear>("int8Linear(x, weightCodes, weightStats, weight, bias, threshold)");
  b.bind<&ops::int8_linear_backward>("int8LinearBackward(dy, weightCodes, weightStats)");
}

}  // namespace bnb
