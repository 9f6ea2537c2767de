// POST /v1/embeddings: the pooled last hidden states of texts.
import { embedIds } from "../generation/embed.js";
import { wrongField } from "./api-error.js";
import type { Call } from "./call.js";
import type { Fields } from "./fields.js";
import { sendJson } from "./http.js";
import type { Served } from "./served.js";
import { readIds } from "./text-request.js";

export async function embeddings(fields: Fields, served: Served, call: Call): Promise<void> {
  const input = fields.raw("input");
  const format = fields.one("encoding_format", ["float", "base64"]) ?? "float";
  const dimensions = fields.whole("dimensions", 1);
  fields.ignore("user");
  fields.refuseOthers();
  const isIds = (value: unknown): value is number[] =>
    Array.isArray(value) && value.length > 0 && value.every(Number.isInteger);
  const list: unknown[] = typeof input === "string" || isIds(input) ? [input] : Array.isArray(input) ? input : [];
  if (list.length === 0 || !list.every((one) => typeof one === "string" || isIds(one))) {
    throw wrongField("input", "a text, texts, token ids, or lists of token ids", input);
  }
  call.place?.grow(list.length);
  const ids = await Promise.all(list.map((one) => readIds("input", one, served)));
  const { model, adapter, adapters } = served;
  using use = adapter === undefined ? null : adapters.use("embeddings", adapter);
  const options = { normalize: true, signal: call.signal };
  using vectors = await embedIds(model, ids, options, use && { set: adapters, use });
  const width = vectors.shape[1] as number;
  if (dimensions !== undefined && dimensions > width) {
    throw wrongField("dimensions", `a whole number from 1 to ${width}`, dimensions);
  }
  const values = await vectors.floats();
  const data = ids.map((_, index) => {
    const own = firstOf(values.slice(index * width, (index + 1) * width), dimensions);
    const embedding = format === "float" ? [...own] : Buffer.from(own.buffer).toString("base64");
    return { object: "embedding", index, embedding };
  });
  const tokens = ids.reduce((sum, { length }) => sum + length, 0);
  call.countPrompt(tokens, 0);
  const usage = { prompt_tokens: tokens, total_tokens: tokens };
  sendJson(call.response, 200, { object: "list", data, model: served.name, usage });
}

/** The first numbers of a vector, of length 1 again. */
function firstOf(vector: Float32Array, dimensions: number = vector.length): Float32Array {
  if (dimensions === vector.length) return vector;
  const first = vector.subarray(0, dimensions);
  const length = Math.hypot(...first);
  return Float32Array.from(first, (value) => value / (length || 1));
}
