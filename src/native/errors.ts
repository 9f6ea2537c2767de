// The one error class, thrown by TypeScript and by the addon alike.

/** Stable codes, in Node's style. */
export type ErrorCode =
  | "ERR_BNB_ARGUMENT"
  | "ERR_BNB_OPTION"
  | "ERR_BNB_SHAPE"
  | "ERR_BNB_DTYPE"
  | "ERR_BNB_DEVICE"
  | "ERR_BNB_DISPOSED"
  | "ERR_BNB_UNSUPPORTED"
  | "ERR_BNB_OOM"
  | "ERR_BNB_FORMAT"
  | "ERR_BNB_FILE"
  | "ERR_BNB_NONFINITE"
  | "ERR_BNB_ABORTED"
  | "ERR_BNB_NO_BINARY"
  | "ERR_BNB_CUDA";

/**
 * Every error of this library. `message` reads "op: what must hold, what came"; `code` is stable across versions;
 * `cause` holds the error underneath where there is one.
 */
export class BnbError extends Error {
  override readonly name = "BnbError";
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}
