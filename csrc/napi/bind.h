// binder.bind<&ops::rms_norm>("rmsNorm(x, weight, eps)") derives a Node-API callback from the C++ signature:
// arguments are converted by arg<T>, results are written to the shared buffer. The names are for error messages.
#pragma once
#include <node_api.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "napi/env.h"
#include "napi/status.h"

namespace bnb {

struct Signature {
  std::string op;
  std::vector<std::string> names;
  explicit Signature(const char* text);  // "rmsNorm(x, weight, eps)"
};

// One argument of one call. `handles` has a bit per argument that was a tensor, a quantized weight or null, or a list
// of these: run() in JavaScript says so, because a number tells nothing.
struct Argument {
  Env& env;
  const Signature& signature;
  napi_value value;
  size_t index;
  uint32_t handles = 0;

  bool is_handle() const { return handles >> index & 1; }
  const char* op() const { return signature.op.c_str(); }
  const char* name() const { return signature.names[index].c_str(); }
};

const Tensor& tensor_arg(const Argument& a);
const Quantized4Bit& quantized_arg(const Argument& a);
const Scales& scales_arg(const Argument& a);
const ExpertWeights& experts_arg(const Argument& a);
bool is_absent(const Argument& a);  // null
double number_arg(const Argument& a);
int64_t integer_arg(const Argument& a);
bool bool_arg(const Argument& a);
DType dtype_arg(const Argument& a);
Shape shape_arg(const Argument& a);
std::vector<Tensor> tensors_arg(const Argument& a);
std::vector<Matrix> matrices_arg(const Argument& a);
std::vector<double> numbers_arg(const Argument& a);  // a Float64Array

// References to what lives in the environment are passed as such, the rest is converted to a value.
template <class A>
decltype(auto) arg(const Argument& a) {
  using T = std::remove_cvref_t<A>;
  if constexpr (std::is_same_v<T, Device>) {
    return a.env.device_at(integer_arg(a));
  } else if constexpr (std::is_same_v<T, Quantized4Bit>) {
    return quantized_arg(a);
  } else if constexpr (std::is_same_v<T, Scales>) {
    return scales_arg(a);
  } else if constexpr (std::is_same_v<T, ExpertWeights>) {
    return experts_arg(a);
  } else if constexpr (std::is_same_v<T, Tensor>) {
    return tensor_arg(a);
  } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
    return is_absent(a) ? std::optional<Tensor>{} : std::optional<Tensor>{tensor_arg(a)};
  } else if constexpr (std::is_same_v<T, std::optional<Quantized4Bit>>) {
    return is_absent(a) ? std::optional<Quantized4Bit>{} : std::optional<Quantized4Bit>{quantized_arg(a)};
  } else if constexpr (std::is_same_v<T, std::vector<Tensor>>) {
    return tensors_arg(a);
  } else if constexpr (std::is_same_v<T, std::vector<Matrix>>) {
    return matrices_arg(a);
  } else if constexpr (std::is_same_v<T, std::vector<double>>) {
    return numbers_arg(a);
  } else if constexpr (std::is_same_v<T, Shape>) {
    return shape_arg(a);
  } else if constexpr (std::is_same_v<T, DType>) {
    return dtype_arg(a);
  } else if constexpr (std::is_same_v<T, bool>) {
    return bool_arg(a);
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(integer_arg(a));
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(number_arg(a));
  } else if constexpr (std::is_same_v<T, int32_t>) {
    const int64_t v = integer_arg(a);
    check_argument(v >= INT32_MIN && v <= INT32_MAX, a.op(), a.name(), " must fit 32 bits, got ", v);
    return static_cast<int32_t>(v);
  } else {
    static_assert(std::is_same_v<T, int64_t>);
    return integer_arg(a);
  }
}

// Writes the outputs of one call: per tensor [handle, dtype, device, ndim, dims...]; an absent one has handle 0,
// a quantized weight dtype -1, a plain number dtype -2 and its value in place of the handle, the scales of blocks -3,
// the weights of experts -4.
class Results {
 public:
  explicit Results(Env& env) : env_(env), at_(env.results + 1) {}
  ~Results() { env_.results[0] = count_; }

  void put(const Tensor& t);
  void put(const Quantized4Bit& q);
  void put(const Scales& s);
  void put(const ExpertWeights& e);
  void put(const std::optional<Tensor>& t);
  void put(double value);
  void put(int64_t value) { put(static_cast<double>(value)); }
  void put(bool value) { put(value ? 1.0 : 0.0); }
  template <class T>
  void put(const std::vector<T>& values) {
    for (const T& v : values) put(v);
  }
  template <class... T>
  void put(const std::tuple<T...>& values) {
    std::apply([this](const auto&... v) { (this->put(v), ...); }, values);
  }

 private:
  void write(double handle, double dtype, double device, const Shape& shape);
  Env& env_;
  double* at_;
  int count_ = 0;
};

struct BoundOp {
  Env& env;
  Signature signature;
};

template <auto F>
struct Binding;

template <class R, class... A, R (*F)(A...)>
struct Binding<F> {
  template <size_t... I>
  static void call(BoundOp& op, [[maybe_unused]] napi_value* values, std::index_sequence<I...>) {
    static_assert(sizeof...(A) <= 31);
    [[maybe_unused]] const uint32_t handles = op.env.handles_of_call();
    if constexpr (std::is_void_v<R>) {
      F(arg<A>(Argument{op.env, op.signature, values[I], I, handles})...);
      op.env.results[0] = 0;
    } else {
      const R result = F(arg<A>(Argument{op.env, op.signature, values[I], I, handles})...);
      Results(op.env).put(result);
    }
  }

  static napi_value invoke(napi_env env, napi_callback_info info) {
    size_t n = sizeof...(A);
    napi_value values[sizeof...(A) + 1];
    void* data;
    if (napi_get_cb_info(env, info, &n, values, nullptr, &data) != napi_ok) return nullptr;
    BoundOp& op = *static_cast<BoundOp*>(data);
    try {
      check_argument(n == sizeof...(A), op.signature.op.c_str(), "takes ", sizeof...(A), " arguments, got ", n);
      call(op, values, std::index_sequence_for<A...>{});
      op.env.account();
      op.env.check_backlog();
    } catch (const Error& error) {
      op.env.throw_error(error);
    } catch (const std::exception& error) {
      op.env.throw_error(Error(Code::oom, op.signature.op + ": " + error.what()));
    }
    return nullptr;
  }
};

struct Binder {
  Env& env;
  napi_value exports;

  template <auto F>
  void bind(const char* signature) const {
    define(new BoundOp{env, Signature(signature)}, Binding<F>::invoke);
  }

 private:
  void define(BoundOp* op, napi_callback callback) const;
};

}  // namespace bnb
