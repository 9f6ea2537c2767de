// The JavaScript codes of the error kinds.

#include "core/error.h"

namespace bnb {

const char* code_name(Code code) {
  switch (code) {
    case Code::argument: return "ERR_BNB_ARGUMENT";
    case Code::option: return "ERR_BNB_OPTION";
    case Code::shape: return "ERR_BNB_SHAPE";
    case Code::dtype: return "ERR_BNB_DTYPE";
    case Code::device: return "ERR_BNB_DEVICE";
    case Code::disposed: return "ERR_BNB_DISPOSED";
    case Code::unsupported: return "ERR_BNB_UNSUPPORTED";
    case Code::oom: return "ERR_BNB_OOM";
    case Code::format: return "ERR_BNB_FORMAT";
    case Code::file: return "ERR_BNB_FILE";
    case Code::nonfinite: return "ERR_BNB_NONFINITE";
    case Code::aborted: return "ERR_BNB_ABORTED";
    case Code::cuda: return "ERR_BNB_CUDA";
  }
  return "ERR_BNB_ARGUMENT";
}

}  // namespace bnb
