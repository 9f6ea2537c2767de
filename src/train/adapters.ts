// All that training knows of adapters: which layers have one, how they are left out for a while, and how they are saved as
// Python's peft loads them.
import { join } from "node:path";
import { replaceFiles } from "../hub/replace-files.js";
import type { WritableTensor } from "../hub/safetensors-writer.js";
import { stageSafetensors } from "../hub/safetensors-writer.js";
import { LoraLinear } from "../lora/index.js";
import type { Module } from "../nn/index.js";
import type { Tensor } from "../tensor/tensor.js";

/** What adapter_config.json says beside the tensors. */
export interface AdapterSettings {
  readonly r: number;
  readonly loraAlpha: number;
  readonly loraDropout: number;
  readonly targetModules: readonly string[];
  readonly baseModel: string;
}

interface Place {
  readonly parent: Module;
  readonly field: string;
  readonly adapter: LoraLinear;
}

function places(model: Module): Place[] {
  return model
    .modules()
    .flatMap((parent) =>
      parent
        .members()
        .flatMap(({ field, value }) => (value instanceof LoraLinear ? [{ parent, field, adapter: value }] : [])),
    );
}

/** Whether the model has adapters. */
export const hasAdapters = (model: Module): boolean => model.modules().some((module) => module instanceof LoraLinear);

/** What `compute` gives for the model without its adapters. Synchronous: nothing may compute meanwhile. */
export function withoutAdapters<T>(model: Module, compute: () => T): T {
  const found = places(model);
  for (const { parent, field, adapter } of found) parent.replaceMember(field, adapter.baseLayer);
  try {
    return compute();
  } finally {
    for (const { parent, field, adapter } of found) parent.replaceMember(field, adapter);
  }
}

/** The tensors of all adapters by the names that peft gives them. */
export function adapterTensors(model: Module): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [path, module] of model.namedModules()) {
    if (!(module instanceof LoraLinear)) continue;
    tensors.set(`base_model.model.${path}.lora_A.weight`, module.loraA);
    tensors.set(`base_model.model.${path}.lora_B.weight`, module.loraB);
  }
  return tensors;
}

/** Saves adapter_model.safetensors and adapter_config.json, both or none. */
export async function saveAdapters(model: Module, folder: string, settings: AdapterSettings): Promise<void> {
  const tensors: [string, WritableTensor][] = [...adapterTensors(model)];
  const config = {
    base_model_name_or_path: settings.baseModel,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    lora_alpha: settings.loraAlpha,
    lora_dropout: settings.loraDropout,
    peft_type: "LORA",
    r: settings.r,
    target_modules: [...settings.targetModules].sort(),
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: false,
  };
  await replaceFiles(async (files) => {
    await stageSafetensors(files, join(folder, "adapter_model.safetensors"), tensors);
    await files.write(join(folder, "adapter_config.json"), (file) =>
      file.writeFile(`${JSON.stringify(config, null, 2)}\n`),
    );
  });
}
