// Conversions between JavaScript values and the arguments and results of ops.

#include "napi/bind.h"

namespace bnb {
namespace {

const char* type_name(const Argument& a) {
  napi_valuetype type;
  napi_typeof(a.env.napi, a.value, &type);
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
  const bool is_number = napi_get_value_double(a.env.napi, a.value, &number) == napi_ok;
  // The smallest generation is 1, so handles start at -2^20.
  const bool is_handle =
      is_number && number <= -(1 << 20) && number >= INT32_MIN && number == static_cast<int32_t>(number);
  if (!is_handle)
    fail(Code::argument, a.op(), a.name(), " must be ", expected, ", got ",
         is_number && number == 0 ? "null" : type_name(a));
  SlotValue* slot = a.env.slots.find(static_cast<int32_t>(number));
  if (!slot) fail(Code::disposed, a.op(), a.name(), " was disposed");
  return *slot;
}

// In the order of SlotValue.
constexpr const char* kKinds[] = {"nothing", "a Tensor", "a quantized weight", "the scales of blocks"};

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
  napi_is_array(a.env.napi, a.value, &is_array);
  if (!is_array || napi_get_array_length(a.env.napi, a.value, &length) != napi_ok)
    fail(Code::argument, a.op(), a.name(), " must be ", expected, ", got ", type_name(a));
  return length;
}

Argument element(const Argument& a, uint32_t i) {
  napi_value item;
  napi_get_element(a.env.napi, a.value, i, &item);
  return {a.env, a.signature, item, a.index};
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

bool is_absent(const Argument& a) {
  double number;
  if (napi_get_value_double(a.env.napi, a.value, &number) == napi_ok) return number == 0;
  napi_valuetype type;
  napi_typeof(a.env.napi, a.value, &type);
  return type == napi_null || type == napi_undefined;
}

double number_arg(const Argument& a) {
  double number;
  if (napi_get_value_double(a.env.napi, a.value, &number) != napi_ok)
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

std::string string_arg(const Argument& a) {
  size_t length = 0;
  if (napi_get_value_string_utf8(a.env.napi, a.value, nullptr, 0, &length) != napi_ok)
    fail(Code::argument, a.op(), a.name(), " must be a string, got ", type_name(a));
  std::string text(length, '\0');
  napi_get_value_string_utf8(a.env.napi, a.value, text.data(), length + 1, &length);
  return text;
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
  std::vector<Tensor> tensors;
  tensors.reserve(length);
  for (uint32_t i = 0; i < length; i++) {
    const Argument item = element(a, i);
    tensors.push_back(is_absent(item) ? Tensor() : tensor_arg(item));
  }
  return tensors;
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

void Results::put(const std::optional<Tensor>& t) {
  if (t) return put(*t);
  write(0, 0, 0, {});
}

void Results::put(double value) { write(value, -2, 0, {}); }

void Binder::define(BoundOp* op, napi_callback callback) const {
  napi_add_env_cleanup_hook(
      env.napi, [](void* p) { delete static_cast<BoundOp*>(p); }, op);
  napi_value function;
  napi_create_function(env.napi, op->signature.op.c_str(), NAPI_AUTO_LENGTH, callback, op, &function);
  napi_set_named_property(env.napi, exports, op->signature.op.c_str(), function);
}

}  // namespace bnb
