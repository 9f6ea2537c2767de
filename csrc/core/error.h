// Errors: one exception with a stable code, and checks that format their message only when they fail.
// Wording: "op: what must hold, what came".
#pragma once
#include <cstdint>
#include <exception>
#include <sstream>
#include <string>

namespace bnb {

// The JavaScript codes are ERR_BNB_<NAME>; see code_name().
enum class Code {
  argument,
  option,
  shape,
  dtype,
  device,
  disposed,
  unsupported,
  oom,
  format,
  file,
  nonfinite,
  aborted,
  cuda
};

const char* code_name(Code code);

class Error : public std::exception {
 public:
  Error(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  Code code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  Code code_;
  std::string message_;
};

template <class... Parts>
[[noreturn]] void fail(Code code, const char* op, const Parts&... parts) {
  std::ostringstream out;
  out << op << ": ";
  (out << ... << parts);
  throw Error(code, out.str());
}

// check_shape(x.ndim() == 2, "matmul", "x must be a matrix, got ", x.shape());
#define BNB_DEFINE_CHECK(name)                                                  \
  template <class... Parts>                                                     \
  inline void check_##name(bool holds, const char* op, const Parts&... parts) { \
    if (!holds) [[unlikely]]                                                    \
      fail(Code::name, op, parts...);                                           \
  }
BNB_DEFINE_CHECK(argument)
BNB_DEFINE_CHECK(option)
BNB_DEFINE_CHECK(shape)
BNB_DEFINE_CHECK(dtype)
BNB_DEFINE_CHECK(device)
BNB_DEFINE_CHECK(unsupported)
#undef BNB_DEFINE_CHECK

}  // namespace bnb
