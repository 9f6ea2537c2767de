// LLM.int8(): row-wise absmax quantization, exact integer products, and the linear layer with outlier columns in
// floating point (Dettmers et al. 2022, arXiv:2208.07339).
#pragma once
#include "core/kernel.h"

namespace bnb {

// Outlier elements (|a| >= threshold > 0) do not count for their row's absmax, and every column that holds one is
// set to code 0 and marked. A row with NaN, or with infinity when there is no threshold, gets stats NaN, codes 0.
struct Int8QuantizeRowsArgs {
  const void* a;          // [rows, cols] dtype
  int8_t* codes;          // [rows, cols]
  float* stats;           // [rows]: absmax, not divided by 127
  uint8_t* outlier_mask;  // [cols] 1 where a column holds an outlier; null when threshold is 0
  int64_t rows, cols;
  float threshold;
  DType dtype;
};
BNB_KERNEL(int8_quantize_rows, Int8QuantizeRowsArgs)

// y[i] = codes[ids[i]] * stats[ids[i]] / 127; without ids, row i.
struct Int8DequantizeRowsArgs {
  const int8_t* codes;  // [table_rows, cols]
  const float* stats;   // [table_rows]
  const int32_t* ids;   // [rows], or null
  void* y;              // [rows, cols] dtype
  int64_t rows, cols, table_rows;
  DType dtype;
  Fault* fault;
};
BNB_KERNEL(int8_dequantize_rows, Int8DequantizeRowsArgs)

// c = a @ b^T in exact int32 arithmetic; k <= 131071.
struct Int8MatmulArgs {
  const int8_t* a;  // [m, k]
  const int8_t* b;  // [n, k]
  int32_t* c;       // [m, n]
  int64_t m, n, k;
};
BNB_KERNEL(int8_matmul, Int8MatmulArgs)

// y = c * row_stats * col_stats / 127^2 + bias.
struct Int8DequantizeProductArgs {
  const int32_t* c;        // [m, n]
  const float* row_stats;  // [m]
  const float* col_stats;  // [n]
  const void* bias;        // [n] bias_dtype, or null
  void* y;                 // [m, n] dtype
  int64_t m, n;
  DType dtype, bias_dtype;
};
BNB_KERNEL(int8_dequantize_product, Int8DequantizeProductArgs)

// y = codes @ weight_codes^T * scales + x[:, outliers] @ weight[:, outliers]^T + bias, rounded once. The outlier
// columns of the weight come from `weight` where it is kept, else from the codes. Any k: long sums are split.
struct Int8LinearArgs {
  const void* x;                // [m, k] dtype: read in outlier columns only
  const int8_t* codes;          // [m, k], zero in outlier columns
  const float* stats;           // [m]
  const uint8_t* outlier_mask;  // [k], or null: no outliers
  const int8_t* weight_codes;   // [n, k]
  const float* weight_stats;    // [n]
  const void* weight;           // [n, k] weight_dtype, or null
  const void* bias;             // [n] bias_dtype, or null
  void* y;                      // [m, n] dtype
  int64_t m, n, k;
  DType dtype, weight_dtype, bias_dtype;
};
BNB_KERNEL(int8_linear, Int8LinearArgs)

// dx = dy @ (weight_codes * weight_stats / 127).
struct Int8LinearBackwardArgs {
  const void* dy;              // [m, n] dtype
  const int8_t* weight_codes;  // [n, k]
  const float* weight_stats;   // [n]
  void* dx;                    // [m, k] dtype
  int64_t m, n, k;
  DType dtype;
};
BNB_KERNEL(int8_linear_backward, Int8LinearBackwardArgs)

}  // namespace bnb
