// Conversions between JavaScript values and the arguments and results of ops.

#include "napi/bind.h"

namespace bnb {
namespace {

const char* type_name(const Argument& a) {
  napi_valuetype type;
  must(a.env.napi, napi_typeof(a.env.napi, a.value, &type));
  if (a.is_handle() && type == napi_number) return is_absent(a) ? "null" : "a Tensor or a quantized weight";
  switch (type) {
    case napi_undefined: return "undefined";
    case napi_null: return "null";
    case napi_boolean: return "a boolean";
    case napi_number: return "a number";
    case napi_string: return "a string";
    case napi_symbol: return "a symbol";
    case napi_function: return "a function";
    case napi_bigint: return "a bigint";
    default: return "an object";
  }
}

// run() passes handles, and 0 for null. Anything else is a foreign value.
SlotValue& slot_arg(const Argument& a, const char* expected) {
  double number = 0;
  // The smallest generation is 1, so handles start at -2^20.
  const bool is_handle = a.is_handle() && napi_get_value_double(a.env.napi, a.value, &number) == napi_ok &&
                         number <= -(1 << 20) && number >= INT32_MIN && number == static_cast<int32_t>(number);
  if (!is_handle) fail(Code::argument, a.op(), a.name(), " must be ", expected, ", got ", type_name(a));
  SlotValue* slot = a.env.slots.find(static_cast<int32_t>(number));
  if (!slot) fail(Code::disposed, a.op(), a.name(), " was disposed");
  return *slot;
}

// In the order of SlotValue.
constexpr const char* kKinds[] = {"nothing", "a Tensor", "a quantized weight", "the scales of blocks",
                                  "the weights of experts"};

template <size_t Kind>
const auto& object_arg(const Argument& a) {
  const SlotValue& slot = slot_arg(a, kKinds[Kind]);
  const auto* object = std::get_if<Kind>(&slot);
  check_argument(object != nullptr, a.op(), a.name(), " must be ", kKinds[Kind], ", got ", kKinds[slot.index()]);
  return *object;
}

uint32_t array_length(const Argument& a, const char* expected) {
  uint32_t length = 0;
  bool is_array = false;
  must(a.env.napi, napi_is_array(a.env.napi, a.value, &is_array));
  if (!is_array || napi_get_array_length(a.env.napi, a.value, &length) != napi_ok)
    fail(Code::argument, a.op(), a.name(), " must be ", expected, ", got ", type_name(a));
  return length;
}

Argument element(const Argument& a, uint32_t i) {
  napi_value item;
  must(a.env.napi, napi_get_element(a.env.napi, a.value, i, &item));
  return {a.env, a.signature, item, a.index, a.handles};
}

}  // namespace

Signature::Signature(const char* text) {
  std::string word;
  for (const char* c = text; *c; c++) {
    if (*c == '(') {
      op = word;
      word.clear();
    } else if (*c == ',' || *c == ')') {
      if (!word.empty()) names.push_back(word);
      word.clear();
    } else if (*c != ' ') {
      word += *c;
    }
  }
}

const Tensor& tensor_arg(const Argument& a) { return object_arg<1>(a); }
const Quantized4Bit& quantized_arg(const Argument& a) { return *object_arg<2>(a); }
const Scales& scales_arg(const Argument& a) { return *object_arg<3>(a); }
const ExpertWeights& experts_arg(const Argument& a) { return *object_arg<4>(a); }

bool is_absent(const Argument& a) {
  double number;
  return a.is_handle() && napi_get_value_double(a.env.napi, a.value, &number) == napi_ok && number == 0;
}

double number_arg(const Argument& a) {
  double number;
  if (a.is_handle() || napi_get_value_double(a.env.napi, a.value, &number) != napi_ok)
    fail(Code::argument, a.op(), a.name(), " must be a number, got ", type_name(a));
  return number;
}

int64_t integer_arg(const Argument& a) {
  const double number = number_arg(a);
  const bool fits = number >= -9007199254740992.0 && number <= 9007199254740992.0;
  check_argument(fits && number == static_cast<double>(static_cast<int64_t>(number)), a.op(), a.name(),
                 " must be an integer, got ", number);
  return static_cast<int64_t>(number);
}

bool bool_arg(const Argument& a) {
  bool value;
  if (napi_get_value_bool(a.env.napi, a.value, &value) != napi_ok)
    fail(Code::argument, a.op(), a.name(), " must be a boolean, got ", type_name(a));
  return value;
}

DType dtype_arg(const Argument& a) {
  const int64_t code = integer_arg(a);
  check_dtype(code >= 0 && code < kDTypeCount, a.op(), a.name(), " must be a known dtype, got number ", code);
  return static_cast<DType>(code);
}

Shape shape_arg(const Argument& a) {
  const uint32_t length = array_length(a, "an array of sizes");
  check_shape(length <= kMaxAxes, a.op(), a.name(), " may have at most ", kMaxAxes, " axes, got ", length);
  Shape shape;
  for (uint32_t i = 0; i < length; i++) shape.push_back(integer_arg(element(a, i)));
  return shape;
}

std::vector<Tensor> tensors_arg(const Argument& a) {
  const uint32_t length = array_length(a, "an array of Tensors");
  check_argument(length == 0 || a.is_handle(), a.op(), a.name(),
                 " must be an array of Tensors, got other values in it");
  std::vector<Tensor> tensors;
  tensors.reserve(length);
  for (uint32_t i = 0; i < length; i++) {
    const Argument item = element(a, i);
    tensors.push_back(is_absent(item) ? Tensor() : tensor_arg(item));
  }
  return tensors;
}

std::vector<Matrix> matrices_arg(const Argument& a) {
  constexpr const char* expected = "an array of Tensors or quantized weights";
  const uint32_t length = array_length(a, expected);
  check_argument(length == 0 || a.is_handle(), a.op(), a.name(), " must be ", expected, ", got other values in it");
  std::vector<Matrix> matrices;
  matrices.reserve(length);
  for (uint32_t i = 0; i < length; i++) {
    const Argument item = element(a, i);
    const SlotValue& slot = slot_arg(item, expected);
    if (const auto* q = std::get_if<std::unique_ptr<Quantized4Bit>>(&slot)) {
      matrices.emplace_back(**q);
    } else {
      matrices.emplace_back(tensor_arg(item));
    }
  }
  return matrices;
}

std::vector<double> numbers_arg(const Argument& a) {
  napi_typedarray_type type = napi_int8_array;
  size_t length = 0;
  void* data = nullptr;
  const napi_status status = napi_get_typedarray_info(a.env.napi, a.value, &type, &length, &data, nullptr, nullptr);
  check_argument(status == napi_ok && type == napi_float64_array, a.op(), a.name(), " must be a Float64Array");
  const double* numbers = static_cast<const double*>(data);
  return length == 0 ? std::vector<double>() : std::vector<double>(numbers, numbers + length);
}

void Results::write(double handle, double dtype, double device, const Shape& shape) {
  const size_t used = static_cast<size_t>(at_ - env_.results);
  check_argument(used + 4 + kMaxAxes <= env_.results_capacity, "run", "too many outputs for one call");
  *at_++ = handle;
  *at_++ = dtype;
  *at_++ = device;
  *at_++ = shape.ndim();
  for (const int64_t dim : shape) *at_++ = static_cast<double>(dim);
  count_++;
}

void Results::put(const Tensor& t) {
  write(env_.slots.add(t), static_cast<double>(t.dtype()), static_cast<double>(env_.index_of(t.device())), t.shape());
}

void Results::put(const Quantized4Bit& q) {
  const double device = static_cast<double>(env_.index_of(q.device()));
  write(env_.slots.add(std::make_unique<Quantized4Bit>(q)), -1, device, q.shape);
}

void Results::put(const Scales& s) {
  const double device = static_cast<double>(env_.index_of(s.device()));
  write(env_.slots.add(std::make_unique<Scales>(s)), -3, device, {s.blocks()});
}

void Results::put(const ExpertWeights& e) {
  const double device = static_cast<double>(env_.index_of(e.device()));
  write(env_.slots.add(std::make_unique<ExpertWeights>(e)), -4, device, {e.count, e.width, e.hidden});
}

void Results::put(const std::optional<Tensor>& t) {
  if (t) return put(*t);
  write(0, 0, 0, {});
}

void Results::put(double value) { write(value, -2, 0, {}); }

void Binder::define(BoundOp* op, napi_callback callback) const {
  must(env.napi, napi_add_env_cleanup_hook(
                     env.napi, [](void* p) { delete static_cast<BoundOp*>(p); }, op));
  napi_value function;
  const char* name = op->signature.op.c_str();
  must(env.napi, napi_create_function(env.napi, name, NAPI_AUTO_LENGTH, callback, op, &function));
  must(env.napi, napi_set_named_property(env.napi, exports, name, function));
}

}  // namespace bnb
