// The parts of a model that are placed as a whole, and how large each will be, known before anything is loaded.
import type { BitsAndBytesConfig, TensorSource } from "../hub/index.js";
import type { WeightFormat } from "../hub/quantize-linears.js";
import { Linear, Module, ModuleList, snakeCase } from "../nn/index.js";
import { sizeOf } from "../tensor/dtype.js";
import { Tensor } from "../tensor/tensor.js";
import type { Unit } from "./device-map.js";

/** How the weights of a model will be kept. */
export interface WeightPlan {
  readonly formats: ReadonlyMap<string, WeightFormat>;
  readonly source: TensorSource;
  readonly config: BitsAndBytesConfig | null;
  readonly blocksize: number;
}

/** A unit with its module. */
export interface ModelUnit extends Unit {
  readonly module: Module;
  /** Whether it is a layer, the last number of its path its place among them. */
  readonly isLayer: boolean;
}

/** The layers of a model, and what is beside them: the largest modules that contain no layers. */
export function unitsOf(model: Module, plan: WeightPlan, keepsFloat: boolean): ModelUnit[] {
  const units: ModelUnit[] = [];
  const visit = (path: string, module: Module, isLayer: boolean): void => {
    const inside = module.namedModules(path);
    if (!isLayer && inside.some(([, below]) => below instanceof ModuleList)) {
      for (const { field, name, value } of module.members()) {
        const own = name ?? snakeCase(field);
        if (value instanceof Module) visit(path === "" ? own : `${path}.${own}`, value, module instanceof ModuleList);
      }
      return;
    }
    const bytes = bytesOf(path, module, plan);
    if (bytes === 0) return;
    const isQuantized = inside.some(([name]) => plan.formats.get(name) === "int8");
    const asFloat = keepsFloat && isQuantized ? bytesOf(path, module, { ...plan, formats: new Map() }, 4) : bytes;
    units.push({ path, module, isLayer, bytes, offloadedBytes: asFloat });
  };
  visit("", model, false);
  return units;
}

/** Of all tensors below a module; `floatBytes` is that of an element of a float, by default its own. */
function bytesOf(path: string, root: Module, plan: WeightPlan, floatBytes?: number): number {
  const seen = new Set<Tensor>();
  let sum = 0;
  for (const [name, module] of root.namedModules(path)) {
    const format = plan.formats.get(name) ?? "float";
    for (const { field, value } of module.members()) {
      if (!(value instanceof Tensor) || seen.has(value)) continue;
      seen.add(value);
      const isQuantized = module instanceof Linear && field === "weight" && format !== "float";
      sum += isQuantized
        ? quantizedBytes(name, module, format, plan)
        : taken(value.size * (floatBytes ?? sizeOf(value.dtype)));
    }
  }
  return sum;
}

function quantizedBytes(path: string, { weight }: Linear, format: WeightFormat, plan: WeightPlan): number {
  const [rows, columns] = weight.shape as [number, number];
  const { source, config, blocksize } = plan;
  if (format === "int8") {
    return config?.llmInt8HasFp16Weight ? taken(weight.nbytes) : taken(rows * columns) + taken(4 * rows) + taken(1);
  }
  const part = (name: string): number => {
    const whole = `${path}.weight.${name}`;
    return source.has(whole) ? taken(source.info(whole).nbytes) : 0;
  };
  const codes = taken(Math.ceil((rows * columns) / 2));
  if (source.has(`${path}.weight.absmax`)) {
    return codes + part("absmax") + part("nested_absmax") + part("nested_quant_map") + part("quant_map") + taken(4);
  }
  const blocks = Math.ceil((rows * columns) / blocksize);
  if (!config?.bnb4bitUseDoubleQuant) return codes + taken(4 * blocks) + taken(64);
  return codes + taken(blocks) + taken(4 * Math.ceil(blocks / 256)) + taken(1024) + taken(64) + taken(4);
}

/** What the pool takes for so many bytes: it rounds up to sizes that many tensors share. */
export function taken(nbytes: number): number {
  if (nbytes > 2 ** 20) return Math.ceil(nbytes / 2 ** 16) * 2 ** 16;
  const step = nbytes <= 512 ? 64 : 2 ** (Math.ceil(Math.log2(nbytes)) - 4);
  return Math.max(64, Math.ceil(nbytes / step) * step);
}
