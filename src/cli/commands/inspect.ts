// `bnb inspect`: what the files of a model hold, by their headers: no weight is read.
import { stat } from "node:fs/promises";
import { openCheckpoint } from "../../hub/index.js";
import { resolveModel } from "../../hub/resolve.js";
import type { TensorSource } from "../../hub/source.js";
import { BnbError } from "../../tensor/errors.js";
import { command, revisionOption } from "../command.js";
import { checkRevision } from "../read-config.js";
import { bytes, count } from "../terminal.js";

/** One weight with everything that belongs to it. */
interface Weight {
  name: string;
  format: string;
  shape: readonly number[];
  parameters: number;
  /** Of all its tensors. */
  nbytes: number;
  file: string;
}

/** `bnb inspect` as it is called. */
export const inspect = command({
  words: ["model"],
  about: `Lists the weights of a model, or of one file: their formats, shapes and sizes, statistics included. Reads the
headers of the files only, so it is quick for a model of any size. A model of the hub must have been downloaded.`,
  options: {
    all: { type: "boolean", help: "every weight; by default those that differ in numbers alone share a line" },
    revision: revisionOption,
  },
  async run({ values, words, terminal, signal }) {
    const [name = ""] = words;
    await checkRevision(name, values.revision);
    const file = await stat(name).catch(() => undefined);
    const path =
      file?.isFile() && /\.(safetensors|bin)$/.test(name)
        ? name
        : await resolveModel(name, "model", { revision: values.revision, signal, offline: true });
    const source = await openCheckpoint(path);
    let weights: Weight[];
    try {
      weights = await weightsOf(source);
    } finally {
      await source.close();
    }
    const lines = values.all ? weights.map((weight) => ({ ...weight, times: 1 })) : folded(weights);
    terminal.table(
      ["weight", "format", "shape", "bits a weight", "size"],
      lines.map(({ name, times, format, shape, parameters, nbytes }) => [
        times > 1 ? `${name} (${times})` : name,
        format,
        shape.join(" × "),
        bits(nbytes, parameters),
        bytes(nbytes),
      ]),
      ["left", "left", "left"],
    );
    const byFormat = [...new Set(weights.map(({ format }) => format))].map((format) => {
      const own = weights.filter((weight) => weight.format === format);
      return { format, weights: own.length, ...sums(own) };
    });
    terminal.line();
    const total = { weights: weights.length, ...sums(weights) };
    terminal.table(
      ["format", "weights", "parameters", "bits a weight", "size"],
      [...byFormat, { format: "all", ...total }].map(({ format, weights: n, parameters, nbytes }) => [
        format,
        count(n),
        count(parameters),
        bits(nbytes, parameters),
        bytes(nbytes),
      ]),
    );
    return { json: { model: name, path, weights, formats: byFormat, total } };
  },
});

const bits = (nbytes: number, parameters: number): string =>
  parameters === 0 ? "" : ((8 * nbytes) / parameters).toFixed(2);

function sums(weights: readonly Weight[]): { parameters: number; nbytes: number } {
  return {
    parameters: weights.reduce((sum, { parameters }) => sum + parameters, 0),
    nbytes: weights.reduce((sum, { nbytes }) => sum + nbytes, 0),
  };
}

const STATE = /^(.+)\.quant_state\.bitsandbytes__(\w+)$/;
const PART = /^(.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)$/;

/** Weights with their statistics counted to them, in the order of their names. */
async function weightsOf(source: TensorSource): Promise<Weight[]> {
  const owners = new Map<string, string[]>();
  for (const name of source.names()) {
    const owner = ownerOf(name, source);
    owners.set(owner, [...(owners.get(owner) ?? []), name]);
  }
  const weights: Weight[] = [];
  for (const [name, parts] of owners) {
    const nbytes = parts.reduce((sum, part) => sum + source.info(part).nbytes, 0);
    const { dtype, shape: stored, file } = source.info(name);
    const state = parts.find((part) => STATE.test(part));
    const shape = state === undefined ? stored : await shapeOf(source, state);
    const isNested = parts.includes(`${name}.nested_absmax`);
    const packed = state && `${(STATE.exec(state) as RegExpExecArray)[2]}${isNested ? ", double quant" : ""}`;
    const format = packed ?? (parts.length > 1 ? "int8" : dtype.toLowerCase());
    const parameters = shape.reduce((product, n) => product * n, 1);
    weights.push({ name, format, shape, parameters, nbytes, file });
  }
  return weights.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** The weight that a tensor belongs to: itself, or for statistics theirs. */
function ownerOf(name: string, source: TensorSource): string {
  const packed = PART.exec(name)?.[1];
  if (packed !== undefined && source.has(packed)) return packed;
  const layer = /^(.+)\.(SCB|weight_format)$/.exec(name)?.[1];
  return layer !== undefined && source.has(`${layer}.weight`) ? `${layer}.weight` : name;
}

/** The shape before packing, which stands in a few bytes of JSON. */
async function shapeOf(source: TensorSource, state: string): Promise<readonly number[]> {
  const { nbytes, file } = source.info(state);
  const text = nbytes <= 65_536 ? Buffer.from(await source.bytes(state)).toString("utf8") : "";
  try {
    const { shape } = JSON.parse(text) as { shape: unknown };
    if (Array.isArray(shape) && shape.every((n) => Number.isSafeInteger(n) && n >= 0)) return shape as number[];
  } catch {
    // Said below.
  }
  throw new BnbError("ERR_BNB_FORMAT", `${file}: tensor "${state}" must be JSON with a shape`);
}

/** Weights of one format and shape whose names differ in numbers alone, as one line. */
function folded(weights: readonly Weight[]): (Weight & { times: number })[] {
  const lines = new Map<string, Weight & { times: number }>();
  for (const weight of weights) {
    const name = weight.name.replaceAll(/(?<=^|\.)\d+(?=\.|$)/g, "*");
    const key = `${name} ${weight.format} ${weight.shape.join()}`;
    const line = lines.get(key);
    if (!line) lines.set(key, { ...weight, times: 1 });
    else {
      const { parameters, nbytes, times } = line;
      const sum = { parameters: parameters + weight.parameters, nbytes: nbytes + weight.nbytes };
      lines.set(key, { ...line, ...sum, name, times: times + 1 });
    }
  }
  return [...lines.values()];
}
