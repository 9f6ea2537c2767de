// The folder of an adapter: adapter_model.safetensors with the names of PEFT, and adapter_config.json.
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { noGrad } from "../autograd/no-grad.js";
import type { TensorSource, WritableTensor } from "../hub/index.js";
import { replaceFiles } from "../hub/replace-files.js";
import type { ResolveOptions } from "../hub/resolve.js";
import { resolveModel } from "../hub/resolve.js";
import { openSafetensors } from "../hub/safetensors.js";
import { stageSafetensors } from "../hub/safetensors-writer.js";
import { cast, copyInto } from "../ops/index.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import { sameShape } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { AdapterLayer } from "./adapter-layer.js";
import type { LoraConfig } from "./config.js";
import { CONFIG, configText, originalText, readConfig } from "./config-file.js";
import { LoraAdapter } from "./lora-adapter.js";
import { LoraEmbedding } from "./lora-embedding.js";
import { TokenRows } from "./trainable-tokens.js";

export const WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";

/** What is saved and loaded of one adapter: tensors by their names in the file. */
export function tensorsOf(layers: ReadonlyMap<string, AdapterLayer>, adapter: string): Map<string, Tensor> {
  const found = new Map<string, Tensor>();
  for (const [path, layer] of layers) {
    const own = layer.adapters.get(adapter);
    const put = (name: string, tensor: Tensor | null): void => {
      if (tensor) found.set(`${PREFIX}${path}.${name}`, tensor);
    };
    if (own instanceof TokenRows) put("token_adapter.trainable_tokens_delta", own.trainableTokensDelta);
    if (!(own instanceof LoraAdapter)) continue;
    const isEmbedding = layer instanceof LoraEmbedding;
    put(isEmbedding ? "lora_embedding_A" : "lora_A.weight", own.loraA);
    put(isEmbedding ? "lora_embedding_B" : "lora_B.weight", own.loraB);
    put("lora_B.bias", own.loraBias);
    put("lora_magnitude_vector", own.magnitude);
  }
  return found;
}

/** The name of a parameter of the base in the file. */
export const baseKey = (path: string): string => PREFIX + path;

/** Writes both files of an adapter, which get their names when they are complete. */
export async function saveAdapter(
  folder: string,
  config: LoraConfig,
  tensors: ReadonlyMap<string, WritableTensor>,
): Promise<void> {
  const text = originalText(config) ?? configText(config);
  await replaceFiles(async (files) => {
    await stageSafetensors(files, join(folder, WEIGHTS), [...tensors]);
    await files.write(join(folder, CONFIG), (file) => file.writeFile(text));
  });
}

/** The folder of an adapter: `name` itself, or of what looks like an id of the hub and is no folder, its files in the cache. */
export async function adapterFolder(name: string, options: ResolveOptions): Promise<string> {
  const isId = /^[\w-][\w.-]*\/[\w.-]+$/.test(name);
  const local = isId ? await stat(name).catch(() => undefined) : undefined;
  return isId && !local ? resolveModel(name, "adapter", options) : name;
}

/** An adapter on disk; close it. Throws ERR_BNB_FILE where there is none, with what is there instead. */
export async function openAdapter(folder: string): Promise<{ config: LoraConfig; source: TensorSource }> {
  const path = join(folder, CONFIG);
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${folder}: its ${CONFIG} could not be read: ${cause.message}`, { cause });
  });
  const config = readConfig(text, path);
  try {
    return { config, source: await openSafetensors(join(folder, WEIGHTS)) };
  } catch (error) {
    const pickle = await readFile(join(folder, "adapter_model.bin")).then(
      () => true,
      () => false,
    );
    if (!pickle) throw error;
    const advice = "PEFT converts it: load it there, and save_pretrained writes safetensors";
    throw new BnbError(
      "ERR_BNB_UNSUPPORTED",
      `${folder}: adapter_model.bin is a pickle file, which is not read; ${advice}`,
    );
  }
}

/** Names in a file that mean nothing here: PEFT adds the tables of embeddings, which the base has. */
const redundant = /\.base_layer\.(weight|SCB|weight_format|weight\.[\w.]+)$/;

/**
 * Copies the tensors of a file into those of an adapter. Before anything changes, names and shapes are compared: names that
 * one side lacks are ERR_BNB_FORMAT, other shapes ERR_BNB_SHAPE, each with the first of them.
 */
export async function loadTensors(
  source: TensorSource,
  wanted: ReadonlyMap<string, Tensor>,
  optional: ReadonlyMap<string, Tensor>,
  file: string,
): Promise<void> {
  const names = [...source.names()];
  const into = new Map([...wanted, ...[...optional].filter(([name]) => source.has(name))]);
  const missing = [...wanted.keys()].filter((name) => !source.has(name));
  const others = names.filter((name) => !into.has(name) && !redundant.test(name));
  if (missing.length + others.length > 0) failNames(file, missing, others);
  const shapes = [...into].filter(([name, tensor]) => !sameShape(source.info(name).shape, tensor.shape));
  if (shapes.length > 0) {
    const shown = shapes.slice(0, 3).map(([name, { shape }]) => {
      return `${name} is [${source.info(name).shape.join(", ")}], the model has [${shape.join(", ")}]`;
    });
    const rule = "the adapter must be for a model and a rank like these";
    throw new BnbError("ERR_BNB_SHAPE", `${file}: ${rule}, but ${shown.join("; ")}${more(shapes.length)}`);
  }
  for (const [name, tensor] of into) {
    const loaded = await source.load(name, { device: tensor.device });
    noGrad(() => tidy(() => copyInto(tensor, cast(loaded, tensor.dtype))));
    loaded.dispose();
  }
}

function failNames(file: string, missing: readonly string[], others: readonly string[]): never {
  const list = (what: string, names: readonly string[]): string[] =>
    names.length === 0 ? [] : [`${what} ${names.slice(0, 3).join(", ")}${more(names.length)}`];
  const parts = [...list("it lacks", missing), ...list("the model has no use for", others)];
  throw new BnbError(
    "ERR_BNB_FORMAT",
    `${file}: must hold the adapter's tensors for this model, but ${parts.join("; ")}`,
  );
}

const more = (count: number): string => (count > 3 ? ` and ${count - 3} more` : "");
