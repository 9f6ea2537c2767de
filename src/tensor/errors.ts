// Errors as the layers above `native` import them.
export { BnbError, type ErrorCode } from "../native/errors.js";
