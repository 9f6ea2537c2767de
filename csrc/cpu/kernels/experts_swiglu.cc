// A mixture of experts, each a gated MLP, and its gradients for x and for the shares.
//
// Layout    The pairs (row, choice) are sorted by expert; the rows of x that chose one expert are gathered as float32,
//           and the products of linear_4bit.cc or matmul.cc take them.
// Work      One expert after the other, each product split over the threads; experts without rows cost nothing.
// Numerics  Float32 from x to y, one rounding. What the experts give is added in the order of the experts, so a row's
//           sum does not depend on the others. The backward pass computes gate and up anew.
// Needs     nothing; experts outside the table are reported and count zero.
#include "kernels/experts_swiglu.h"

#include "cpu/lanes.h"
#include "cpu/math.h"
#include "cpu/parallel.h"
#include "cpu/work.h"
#include "kernels/matmul.h"
#include "kernels/plan/linear_4bit_cpu.h"

namespace bnb::BNB_ISA {
namespace {

constexpr int64_t kChunkElements = 8192;
constexpr int64_t kTokens = 1024;  // whose sums exist at once
constexpr int64_t kRows = 256;     // of one expert, computed at once

// y[m, n] = a[m, k] times a matrix of floats [k, n], or transposed [n, k]; a and y float32.
void float_product(const ExpertChoice& c, const float* a, const Weight4Bit& w, float* y, int64_t m, int64_t n,
                   int64_t k, bool transposed) {
  matmul({.a = a,
          .b = w.packed,
          .bias = nullptr,
          .c = y,
          .batch = 1,
          .m = m,
          .n = n,
          .k = k,
          .stride_a = 0,
          .stride_b = 0,
          .dtype_a = DType::float32,
          .dtype_b = c.matrix_dtype,
          .dtype_c = DType::float32,
          .transpose_a = false,
          .transpose_b = transposed,
          .accumulate = false});
}

// y[m, n] = x[m, k] w^T of the matrix `which` of an expert, and dx[m, k] = dy[m, n] w; all float32.
void product(const ExpertChoice& c, int64_t expert, int which, int64_t m, const float* x, float* y) {
  const int64_t n = which == kDown ? c.hidden : c.width, k = which == kDown ? c.width : c.hidden;
  const Weight4Bit& w = c.matrices[expert * kExpertMatrices + which];
  if (!c.is_quantized) return float_product(c, x, w, y, m, n, k, true);
  linear_4bit({.x = x,
               .bias = nullptr,
               .residual = nullptr,
               .y = y,
               .w = w,
               .m = m,
               .n = n,
               .k = k,
               .dtype = DType::float32,
               .bias_dtype = DType::float32,
               .y_dtype = DType::float32,
               .plan = plan_linear_4bit(m, k),
               .variant = -1});
}

void product_backward(const ExpertChoice& c, int64_t expert, int which, int64_t m, const float* dy, float* dx) {
  const int64_t n = which == kDown ? c.hidden : c.width, k = which == kDown ? c.width : c.hidden;
  const Weight4Bit& w = c.matrices[expert * kExpertMatrices + which];
  if (!c.is_quantized) return float_product(c, dy, w, dx, m, k, n, false);
  linear_4bit_backward({.dy = dy,
                        .dx = dx,
                        .w = w,
                        .m = m,
                        .n = n,
                        .k = k,
                        .dtype = DType::float32,
                        .plan = plan_linear_4bit_backward(k),
                        .variant = -1});
}

// The pairs of rows [row0, row0 + rows) by expert: those of expert e are order[starts[e] .. starts[e + 1]).
struct Groups {
  const Scratch<int64_t> starts, order;

  Groups(const ExpertChoice& c, int64_t row0, int64_t rows) : starts(c.count + 2), order(rows * c.choices) {
    const int64_t first = row0 * c.choices, count = rows * c.choices;
    for (int64_t e = 0; e < c.count + 2; e++) starts[e] = 0;
    const auto known = [&](int32_t e) { return e >= 0 && e < c.count; };
    // Counted two places up, so that filling `order` leaves the bounds one place up.
    for (int64_t p = first; p < first + count; p++) {
      if (known(c.experts[p])) {
        starts[c.experts[p] + 2]++;
      } else {
        report_fault(c.fault, FaultCode::index_out_of_range, c.experts[p], c.count);
      }
    }
    for (int64_t e = 2; e < c.count + 2; e++) starts[e] += starts[e - 1];
    for (int64_t p = first; p < first + count; p++)
      if (known(c.experts[p])) order[starts[c.experts[p] + 1]++] = p;
  }
};

// Calls f(expert, pairs, m) for each piece of at most kRows pairs of one expert.
template <class F>
void each_piece(const ExpertChoice& c, const Groups& groups, const F& f) {
  for (int64_t e = 0; e < c.count; e++)
    for (int64_t p = groups.starts[e]; p < groups.starts[e + 1]; p += kRows) {
      const int64_t left = groups.starts[e + 1] - p;
      f(e, groups.order + p, left < kRows ? left : kRows);
    }
}

// The most rows that a piece can have: no row chooses an expert twice, and if it does the pieces are larger.
int64_t piece_rows(const ExpertChoice& c, int64_t rows) { return rows * c.choices < kRows ? rows * c.choices : kRows; }

template <class T>
void gather(const ExpertChoice& c, const void* x, const int64_t* pairs, int64_t m, float* rows) {
  parallel_for(m, items_of(kChunkElements, c.hidden), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const T* from = static_cast<const T*>(x) + pairs[i] / c.choices * c.hidden;
      for_lanes(c.hidden, [&](int64_t h, auto lanes) { lanes.store(rows + i * c.hidden + h, lanes.load(from + h)); });
    }
  });
}

// sums[token] += share * rows[i] for the pairs of a piece; without shares, rows[i] as it is. If a row has chosen an
// expert twice its pairs stand side by side: the row that comes first adds both.
void add_rows(const ExpertChoice& c, int64_t token0, const int64_t* pairs, int64_t m, bool shared, const float* rows,
              float* sums) {
  parallel_for(m, items_of(kChunkElements, c.hidden), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t token = pairs[i] / c.choices;
      if (i > 0 && pairs[i - 1] / c.choices == token) continue;
      float* to = sums + (token - token0) * c.hidden;
      for (int64_t j = i; j < m && pairs[j] / c.choices == token; j++) {
        const F32 share = set1(shared ? c.shares[pairs[j]] : 1.0f);
        const float* from = rows + j * c.hidden;
        for_lanes(c.hidden, [&](int64_t h, auto lanes) {
          lanes.store(to + h, fma(share, lanes.load(from + h), lanes.load(to + h)));
        });
      }
    }
  });
}

// y = the sums of rows [token0, token0 + rows), rounded.
template <class T>
void store_rows(const ExpertChoice& c, int64_t token0, int64_t rows, const float* sums, void* y) {
  T* to = static_cast<T*>(y) + token0 * c.hidden;
  parallel_for(rows * c.hidden, kChunkElements, [&](int64_t begin, int64_t end) {
    for_lanes(end - begin, [&](int64_t i, auto lanes) { lanes.store(to + begin + i, lanes.load(sums + begin + i)); });
  });
}

// sums = the residual, or zeros.
template <class T>
void start_sums(const ExpertChoice& c, int64_t token0, int64_t rows, const void* residual, float* sums) {
  const T* from = static_cast<const T*>(residual) + (residual ? token0 * c.hidden : 0);
  parallel_for(rows * c.hidden, kChunkElements, [&](int64_t begin, int64_t end) {
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      lanes.store(sums + begin + i, residual ? lanes.load(from + begin + i) : zero());
    });
  });
}

// gate = silu(gate) * up
void activate(float* gate, const float* up, int64_t size) {
  parallel_for(size, kChunkElements, [&](int64_t begin, int64_t end) {
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      const F32 g = lanes.load(gate + begin + i);
      lanes.store(gate + begin + i, g * sigmoid(g) * lanes.load(up + begin + i));
    });
  });
}

template <class T>
void forward(const ExpertsSwigluArgs& a, int64_t token0, int64_t tokens) {
  const ExpertChoice& c = a.choice;
  const Groups groups(c, token0, tokens);
  const int64_t most = piece_rows(c, tokens);
  const Scratch<float> sums((tokens + most) * c.hidden + 2 * most * c.width);
  float *rows = sums + tokens * c.hidden, *gate = rows + most * c.hidden, *up = gate + most * c.width;
  start_sums<T>(c, token0, tokens, a.residual, sums);
  each_piece(c, groups, [&](int64_t e, const int64_t* pairs, int64_t m) {
    gather<T>(c, a.x, pairs, m, rows);
    product(c, e, kGate, m, rows, gate);
    product(c, e, kUp, m, rows, up);
    activate(gate, up, m * c.width);
    product(c, e, kDown, m, gate, rows);
    add_rows(c, token0, pairs, m, true, rows, sums);
  });
  store_rows<T>(c, token0, tokens, sums, a.y);
}

// From gate, up and dh = the gradient of silu(gate) * up over the share: dgate and dup in their places, and the
// gradient of the share, which is the sum of dh * silu(gate) * up.
void activate_backward(const ExpertChoice& c, const int64_t* pairs, int64_t m, float* gate, float* up, const float* dh,
                       float* dshares) {
  parallel_for(m, items_of(kChunkElements, c.width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const F32 share = set1(c.shares[pairs[i]]);
      float *gates = gate + i * c.width, *ups = up + i * c.width;
      F32 sum = zero();
      for_lanes(c.width, [&](int64_t j, auto lanes) {
        const F32 d = lanes.load(dh + i * c.width + j), g = lanes.load(gates + j), u = lanes.load(ups + j);
        const F32 s = sigmoid(g), ds = d * share;
        sum += lanes.keep(d * g * s * u);
        lanes.store(gates + j, ds * u * s * fma(g, set1(1.0f) - s, set1(1.0f)));
        lanes.store(ups + j, ds * g * s);
      });
      dshares[pairs[i]] = reduce_add(sum);
    }
  });
}

template <class T>
void backward(const ExpertsSwigluBackwardArgs& a, int64_t token0, int64_t tokens) {
  const ExpertChoice& c = a.choice;
  const Groups groups(c, token0, tokens);
  const int64_t most = piece_rows(c, tokens);
  const Scratch<float> sums((tokens + most) * c.hidden + 3 * most * c.width);
  float *rows = sums + tokens * c.hidden, *gate = rows + most * c.hidden, *up = gate + most * c.width,
        *dh = up + most * c.width;
  start_sums<T>(c, token0, tokens, nullptr, sums);
  for (int64_t p = token0 * c.choices; p < (token0 + tokens) * c.choices; p++) a.dshares[p] = 0;
  each_piece(c, groups, [&](int64_t e, const int64_t* pairs, int64_t m) {
    gather<T>(c, a.x, pairs, m, rows);
    product(c, e, kGate, m, rows, gate);
    product(c, e, kUp, m, rows, up);
    gather<T>(c, a.dy, pairs, m, rows);
    product_backward(c, e, kDown, m, rows, dh);
    activate_backward(c, pairs, m, gate, up, dh, a.dshares);
    product_backward(c, e, kGate, m, gate, rows);
    add_rows(c, token0, pairs, m, false, rows, sums);
    product_backward(c, e, kUp, m, up, rows);
    add_rows(c, token0, pairs, m, false, rows, sums);
  });
  store_rows<T>(c, token0, tokens, sums, a.dx);
}

// Calls f(token0, tokens) for pieces of the batch.
template <class F>
void each_batch(int64_t tokens, const F& f) {
  for (int64_t t = 0; t < tokens; t += kTokens) f(t, tokens - t < kTokens ? tokens - t : kTokens);
}

}  // namespace

void experts_swiglu(const ExpertsSwigluArgs& a) {
  each_batch(a.choice.tokens, [&](int64_t token0, int64_t tokens) {
    visit_float(a.dtype, [&](auto t) { forward<decltype(t)>(a, token0, tokens); });
  });
}

void experts_swiglu_backward(const ExpertsSwigluBackwardArgs& a) {
  each_batch(a.choice.tokens, [&](int64_t token0, int64_t tokens) {
    visit_float(a.dtype, [&](auto t) { backward<decltype(t)>(a, token0, tokens); });
  });
}

}  // namespace bnb::BNB_ISA
