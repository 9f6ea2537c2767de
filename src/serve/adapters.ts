// The names under which a server has its model: the base, and each adapter over it. Who has an admin key adds and takes away
// adapters while it runs.
import type { IncomingMessage, ServerResponse } from "node:http";
import { ApiError, unknownModel, wrongField } from "./api-error.js";
import type { Fields } from "./fields.js";
import { sendJson } from "./http.js";
import { Keys } from "./keys.js";
import type { Served } from "./served.js";

/** What a request is served by that names a model. Throws 404 for a name that is none. */
export function servedAs(served: Served, name: string): Served {
  const { base, adapters } = served;
  if (name === base) return served;
  if (adapters.has(name)) return { ...served, name, adapter: name };
  throw unknownModel(name, [base, ...adapters.names]);
}

/** GET /v1/models and /v1/models/{id}. */
export function sendModels(path: string, { base, adapters, created }: Served, response: ServerResponse): void {
  const one = (id: string, parent: string | null): object => {
    return { id, object: "model", created, owned_by: "bitsandbytes-node", root: base, parent };
  };
  const asked = path.slice("/v1/models/".length);
  if (asked === "") {
    const data = [one(base, null), ...adapters.names.map((name) => one(name, base))];
    sendJson(response, 200, { object: "list", data });
    return;
  }
  const known = [base, ...adapters.names];
  const name = known.find((id) => asked === id || asked === encodeURIComponent(id));
  if (name === undefined) throw unknownModel(asked, known);
  sendJson(response, 200, one(name, name === base ? null : base));
}

type Action = (fields: Fields, served: Served) => Promise<object>;

/** What an admin key is needed for, by the path. */
export const adminPosts: Readonly<Record<string, Action>> = {
  "/v1/load_lora_adapter": async (fields, { base, adapters }) => {
    const [name, folder] = [needed(fields, "lora_name"), needed(fields, "lora_path")];
    fields.refuseOthers();
    if (name === base || adapters.has(name)) throw wrongField("lora_name", "a new name", name);
    await adapters.load(name, folder).catch((error: unknown) => {
      // What lies in a folder is for whoever named it to know.
      if (error instanceof Error) throw new ApiError(400, "invalid_request_error", error.message, "lora_path");
      throw error;
    });
    return { id: name, object: "model", root: base, parent: base };
  },
  "/v1/unload_lora_adapter": async (fields, { adapters }) => {
    const name = needed(fields, "lora_name");
    fields.refuseOthers();
    if (!adapters.has(name)) throw unknownModel(name, adapters.names);
    adapters.unload(name);
    return { id: name, object: "model", deleted: true };
  },
};

/** Who may do that. */
export class Admins {
  readonly #keys: Keys | null;

  constructor(keys: readonly string[]) {
    this.#keys = keys.length > 0 ? new Keys(keys) : null;
  }

  /** The digest of a request's key. Throws 403 where nobody may, 401 for a key that is none of theirs. */
  check(request: IncomingMessage): string {
    if (this.#keys) return this.#keys.check(request);
    const message = "the server was started without an admin key";
    throw new ApiError(403, "invalid_request_error", message, null, "no_admin_key");
  }
}

function needed(fields: Fields, name: string): string {
  const value = fields.text(name);
  if (value === undefined || value === "") throw wrongField(name, "a text", value);
  return value;
}
