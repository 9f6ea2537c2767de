// What of a run lies in tensors: the parameters that learn and the optimizer's states. Written as they are at one moment, so
// that training may go on meanwhile; read back to the bit.
import { join } from "node:path";
import { noGrad } from "../autograd/no-grad.js";
import { fileDTypeOf } from "../hub/file-dtype.js";
import { openSafetensors } from "../hub/safetensors.js";
import type { FileTensor } from "../hub/safetensors-writer.js";
import type { Module } from "../nn/index.js";
import { dynamicMap } from "../ops/codebooks.js";
import { copyInto } from "../ops/index.js";
import type { Optimizer8bit, OptimizerStateDict } from "../optim/index.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import type { TensorFileContent } from "./checkpoints.js";
import type { NamedParameter } from "./make-optimizer.js";
import { trainable } from "./make-optimizer.js";

const WEIGHTS = "trainable.safetensors";
const OPTIMIZER = "optimizer.safetensors";
const NESTED = "__bnb_optimizer_quant_state__";
const FORMAT = "bitsandbytes-node-optimizer";

// The maps of 8-bit states, which go with their scales.
const maps = [
  ["absmax1", "qmap1", true],
  ["absmax2", "qmap2", false],
] as const;

const inOrder = (model: Module): NamedParameter[] => {
  const { decayed, others } = trainable(model);
  return [...decayed, ...others];
};

/** The bytes of a tensor as they are when all that was queued before is done. */
async function snapshot(tensor: Tensor): Promise<FileTensor> {
  const { buffer, byteOffset, byteLength } = await tensor.data();
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  return { dtype: fileDTypeOf(tensor.dtype), shape: tensor.shape, bytes };
}

/** The files of a checkpoint. */
export async function snapshotState(
  model: Module,
  optimizer: Optimizer8bit,
): Promise<Record<string, TensorFileContent>> {
  const named = inOrder(model);
  const weights: [string, FileTensor][] = [];
  for (const [name, parameter] of named) weights.push([name, await snapshot(parameter)]);
  const dict = optimizer.stateDict();
  const states = new Map<string, FileTensor>();
  const steps: Record<string, number> = {};
  for (const [index, entry] of Object.entries(dict.state)) {
    steps[index] = entry.step;
    for (const [key, tensor] of Object.entries(entry[NESTED] as Record<string, Tensor>)) {
      // The maps are the same for all.
      const name = key.startsWith("qmap") ? key : `state.${index}.${key}`;
      if (!states.has(name)) states.set(name, await snapshot(tensor));
      tensor.dispose();
    }
  }
  const metadata = {
    format: FORMAT,
    version: "1",
    optimizer: optimizer.name,
    rule: optimizer.rule,
    param_groups: JSON.stringify(dict.param_groups),
    steps: JSON.stringify(steps),
    parameters: JSON.stringify(named.map(([name]) => name)),
  };
  return { [WEIGHTS]: { tensors: new Map(weights) }, [OPTIMIZER]: { tensors: states, metadata } };
}

/** Puts the weights of a checkpoint into the model. Throws ERR_BNB_FORMAT, with nothing changed, for those of another. */
export async function restoreWeights(op: string, folder: string, model: Module): Promise<void> {
  const file = await openSafetensors(join(folder, WEIGHTS));
  try {
    const named = inOrder(model);
    const show = (shape: readonly number[]): string => `[${shape.join(", ")}]`;
    for (const [name, { shape, dtype }] of named) {
      const wanted = `${op}: ${folder} must hold ${name} as ${dtype} ${show(shape)}`;
      if (!file.has(name)) throw new BnbError("ERR_BNB_FORMAT", `${wanted}, got none: it is of another model`);
      const info = file.info(name);
      if (show(info.shape) !== show(shape) || info.dtype !== fileDTypeOf(dtype)) {
        throw new BnbError("ERR_BNB_FORMAT", `${wanted}, got ${info.dtype} ${show(info.shape)}`);
      }
    }
    const known = new Set(named.map(([name]) => name));
    const extra = [...file.names()].find((name) => !known.has(name));
    if (extra !== undefined) {
      throw new BnbError(
        "ERR_BNB_FORMAT",
        `${op}: ${folder} must be of this model, got ${extra}, which does not train`,
      );
    }
    for (const [name, parameter] of named) {
      using loaded = await file.load(name, { device: parameter.device });
      noGrad(() => copyInto(parameter, loaded));
    }
  } finally {
    await file.close();
  }
}

/** Puts the states of a checkpoint into the optimizer, each to the parameter of its name. */
export async function restoreOptimizer(
  op: string,
  folder: string,
  model: Module,
  optimizer: Optimizer8bit,
): Promise<void> {
  const file = await openSafetensors(join(folder, OPTIMIZER));
  const loaded: Tensor[] = [];
  try {
    const text = (key: string): string => file.metadata.get(key) ?? "null";
    const names = JSON.parse(text("parameters")) as string[] | null;
    const wanted = inOrder(model).map(([name]) => name);
    const other = wanted.findIndex((name, i) => names?.[i] !== name);
    if (other >= 0 || names?.length !== wanted.length) {
      const at = other >= 0 ? other : wanted.length;
      const rule = `${op}: parameter ${at} of ${folder} must be ${wanted[at] ?? "none"}`;
      throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${names?.[at] ?? "none"}`);
    }
    const groups = JSON.parse(text("param_groups")) as OptimizerStateDict["param_groups"];
    const steps = JSON.parse(text("steps")) as Record<string, number>;
    const device = optimizer.paramGroups[0]?.params[0]?.device;
    const state: OptimizerStateDict["state"] = {};
    for (const [index, step] of Object.entries(steps)) state[index] = { step, [NESTED]: {} };
    const keyOf = (name: string): [string, string] => {
      const [, index = "", key = ""] = /^state\.(\d+)\.(.+)$/.exec(name) ?? [];
      return [index, key];
    };
    for (const name of file.names()) {
      const [index, key] = keyOf(name);
      if (index === "") continue;
      const tensor = await file.load(name, device ? { device } : {});
      loaded.push(tensor);
      const entry = state[index]?.[NESTED];
      if (entry) {
        entry[key] = tensor;
        for (const [absmax, map, isSigned] of maps) {
          if (key !== absmax) continue;
          const values = dynamicMap(isSigned, tensor.device);
          loaded.push(values);
          entry[map] = values;
        }
      }
    }
    optimizer.loadStateDict({ optimizer_name: optimizer.rule, state, param_groups: groups });
  } finally {
    for (const tensor of loaded) tensor.dispose();
    await file.close();
  }
}
