// Errors as OpenAI's API has them: { error: { message, type, param, code } } under a status.
import { describe } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";

/** What a request is answered with instead of a result. */
export class ApiError extends Error {
  readonly status: number;
  readonly type: string;
  /** The field that is wrong. */
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    status: number,
    type: string,
    message: string,
    param: string | null = null,
    code: string | null = null,
    headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
    this.status = status;
    this.type = type;
    this.param = param;
    this.code = code;
    this.headers = headers;
  }

  toJSON(): object {
    const { message, type, param, code } = this;
    return { error: { message, type, param, code } };
  }
}

/** 400: a field is not what it must be. */
export function wrongField(param: string, rule: string, got: unknown): ApiError {
  return new ApiError(400, "invalid_request_error", `${param} must be ${rule}, got ${describe(got)}`, param);
}

/** 400: a field that this server does not serve. */
export function unsupportedField(param: string, advice = ""): ApiError {
  const message = `${param} is not supported${advice}`;
  return new ApiError(400, "invalid_request_error", message, param, "unsupported_parameter");
}

export function unknownModel(name: string, known: readonly string[]): ApiError {
  const message = `the model ${JSON.stringify(name)} does not exist; there is ${known.join(", ")}`;
  return new ApiError(404, "invalid_request_error", message, "model", "model_not_found");
}

/** Codes of errors that a request makes. */
export const clients: readonly string[] = ["ERR_BNB_ARGUMENT", "ERR_BNB_OPTION"];

/** What an error of the library is to a client. Its own mistakes are told; others are the server's. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof BnbError && clients.includes(error.code))
    return new ApiError(400, "invalid_request_error", error.message);
  return new ApiError(500, "server_error", error instanceof Error ? error.message : String(error));
}
