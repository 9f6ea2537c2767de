// Parts of a model in several places: each computes on its device, inputs come to it, and weights that wait in host memory
// or on disk are there only while their part computes.
import { isGradEnabled, noGrad } from "../autograd/no-grad.js";
import type { WaitingPlace } from "../hub/tensor-to-write.js";
import type { Module, StateDict } from "../nn/index.js";
import { Parameter } from "../nn/index.js";
import { cast, to } from "../ops/index.js";
import type { Device } from "../tensor/device.js";
import { synchronize, toDevice } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { isFloat } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { OffloadedTensors } from "../tensor/offloaded.js";
import { isPlaceholder, placeholder } from "../tensor/placeholder.js";
import { keep, tidy } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { CausalLM } from "./causal-lm.js";
import type { Place, Plan } from "./device-map.js";
import { shownMap } from "./device-map.js";
import type { OffloadFolder } from "./offload-folder.js";
import type { Movable } from "./pass.js";
import type { Placement, SavedTensor, TextModel } from "./text-model.js";
import type { ModelUnit } from "./units.js";

/** A unit, where it computes, and where its weights wait meanwhile. */
interface PlacedUnit extends ModelUnit {
  readonly place: Place;
  readonly device: Device;
  readonly isOffloaded: boolean;
  /** What its weights are, where that is not what the model computes in. */
  readonly dtype: DType | null;
}

type Method = (...args: unknown[]) => unknown;

/** The places of a model's units, from before it is loaded until it is disposed. */
export class ModelPlacement implements Placement {
  readonly deviceMap: Readonly<Record<string, Place>>;
  readonly #model: Module;
  readonly #units: readonly PlacedUnit[];
  readonly #folder: OffloadFolder | null;
  readonly #groups = new Map<PlacedUnit, OffloadedTensors>();
  /** Of each unit that is brought, the one that came behind it last time. */
  readonly #followers = new Map<PlacedUnit, PlacedUnit>();
  #current: PlacedUnit | null = null;
  #ahead: PlacedUnit | null = null;
  #loading: PlacedUnit | null = null;

  /** `folder` is where the weights of units on disk wait. */
  constructor(model: Module, units: readonly ModelUnit[], { places, main }: Plan, folder: OffloadFolder | null) {
    this.#model = model;
    this.#folder = folder;
    this.deviceMap = shownMap(places);
    this.#units = units.map((unit) => {
      const place = places.get(unit.path) as Place;
      const isOffloaded = place === "disk" || (place === "cpu" && main !== "cpu");
      const device = toDevice(isOffloaded ? main : place).open();
      return {
        ...unit,
        place,
        device,
        isOffloaded,
        dtype: isOffloaded && unit.offloadedBytes > unit.bytes ? "float32" : null,
      };
    });
    const moved = new Map<Tensor, Tensor>();
    for (const { module, device, dtype } of this.#units) replant(module, device, dtype, moved);
    replant(model, toDevice(main), null, moved, this.#units);
    for (const old of moved.keys()) old.dispose();
  }

  /** Paths of units that stay float32 where others are quantized. */
  get floatUnits(): string[] {
    return this.#units.flatMap(({ path, dtype }) => (dtype ? [path] : []));
  }

  /** Whether all is in memory on one device, so that nothing is to be done as the model computes. */
  get isWhole(): boolean {
    return this.#units.every(({ isOffloaded, device }) => !isOffloaded && device === this.#units[0]?.device);
  }

  get isOffloaded(): boolean {
    return this.#groups.size > 0;
  }

  /** A module was loaded: a unit that is complete with it goes to where it waits. */
  async loaded(path: string): Promise<void> {
    const unit = this.#units.find((u) => path === u.path || path.startsWith(`${u.path}.`)) ?? null;
    if (this.#loading && this.#loading !== unit) await this.#putAway(this.#loading);
    this.#loading = unit;
  }

  /** The model is loaded: from now on its parts compute where they are. `tied` is the unit whose weight is the head's, too. */
  async attach(model: TextModel, tied: string | null): Promise<void> {
    if (this.#loading) await this.#putAway(this.#loading);
    this.#loading = null;
    const dtype = model instanceof CausalLM ? model.dtype : null;
    for (const unit of this.#units) {
      this.#wrap(this.#moduleAt(unit.path), "forward", unit, dtype);
      if (unit.path === tied && model instanceof CausalLM) this.#wrap(model, "head", unit, dtype);
    }
    if (this.#groups.size > 0) model.requiresGrad_(false);
    const streamed = [...this.#groups.keys()];
    for (const [i, next] of streamed.slice(1).entries()) this.#followers.set(streamed[i] as PlacedUnit, next);
    if (model instanceof CausalLM) {
      const devices = this.#units.filter(({ isLayer }) => isLayer).map(({ device }) => device);
      const layout = model.kvLayout.bind(model);
      shadow(model, "kvLayout", () => layout().map((layer, i) => ({ ...layer, device: devices[i] ?? model.device })));
    }
    model.adoptPlacement(this);
  }

  /** A state dict is checked as it is made, which reads values: each unit is brought first, and then nothing waits. */
  async savedTensors(onUnit: () => void): Promise<Map<string, SavedTensor>> {
    const places = new Map<Tensor, WaitingPlace>();
    const parts = new Map<Module, StateDict>();
    for (const unit of this.#groups.keys()) {
      onUnit();
      const place = { bring: () => this.#bring(unit) };
      place.bring();
      await synchronize(unit.device);
      place.bring(); // the model may have computed meanwhile
      const [module, part] = [this.#moduleAt(unit.path), new Map<string, Tensor>()];
      module.saveTo(part, `${unit.path}.`);
      parts.set(module, part);
      for (const tensor of part.values()) places.set(tensor, place);
    }
    const saved = [...this.#stateDictOf(parts)];
    return new Map(saved.map(([name, tensor]) => [name, { tensor, place: places.get(tensor) ?? null }]));
  }

  release(): void {
    if (this.#ahead) this.#groups.get(this.#ahead)?.drop();
    this.#ahead = null;
  }

  dispose(): void {
    for (const group of this.#groups.values()) group.dispose();
    this.#groups.clear();
  }

  /** The model's, with the parts of units that were made before. */
  #stateDictOf(parts: ReadonlyMap<Module, StateDict>): StateDict {
    for (const [module, part] of parts) {
      shadow(module, "saveTo", (dict) => {
        for (const [name, tensor] of part) (dict as StateDict).set(name, tensor);
      });
    }
    try {
      return this.#model.stateDict();
    } finally {
      for (const module of parts.keys()) Reflect.deleteProperty(module, "saveTo");
    }
  }

  /** What is there now: layers are replaced by quantized ones as they load. */
  #moduleAt(path: string): Module {
    return this.#model.namedModules().find(([name]) => name === path)?.[1] as Module;
  }

  async #putAway(unit: PlacedUnit): Promise<void> {
    if (!unit.isOffloaded || this.#groups.has(unit)) return;
    const tensors = tensorsOf(this.#moduleAt(unit.path));
    const file = unit.place === "disk" ? await this.#folder?.create() : null;
    try {
      this.#groups.set(unit, new OffloadedTensors(tensors, file?.fd ?? null));
      await synchronize(unit.device);
    } finally {
      await file?.close();
    }
  }

  #wrap(module: Module, method: string, unit: PlacedUnit, dtype: DType | null): void {
    const own = (Reflect.get(module, method) as Method).bind(module);
    const compute = (args: readonly unknown[]): unknown => {
      const result = own(...args.map((arg) => brought(arg, unit.device, unit.dtype)));
      const isOther =
        unit.dtype && dtype && result instanceof Tensor && isFloat(result.dtype) && result.dtype !== dtype;
      return isOther ? cast(result, dtype) : result;
    };
    const group = this.#groups.get(unit);
    if (!group) {
      shadow(module, method, (...args) => (isGradEnabled() ? compute(args) : tidy(() => compute(args))));
      return;
    }
    shadow(module, method, (...args) => {
      refuseGradients(unit, module, args);
      this.#use(unit, group);
      try {
        return noGrad(() => tidy(() => compute(args)));
      } finally {
        group.drop();
      }
    });
  }

  /** Brings the weights of a unit in the place of others that are there for later; a pass may take them away again. */
  #bring(unit: PlacedUnit): void {
    if (this.#ahead !== unit) this.release();
    this.#ahead = unit;
    this.#groups.get(unit)?.use();
  }

  /** Brings the weights of a unit, and those of the one that followed it last time behind them. */
  #use(unit: PlacedUnit, group: OffloadedTensors): void {
    if (this.#ahead !== unit) this.release();
    group.use();
    if (this.#current) this.#followers.set(this.#current, unit);
    this.#current = unit;
    const next = this.#followers.get(unit) ?? null;
    this.#ahead = next === unit ? null : next;
    if (this.#ahead) this.#groups.get(this.#ahead)?.fetch();
  }
}

/** A value on a device, as far as it has tensors. */
function brought(value: unknown, device: Device, dtype: DType | null): unknown {
  if (value instanceof Tensor) {
    const here = value.device === device ? value : to(value, device);
    return dtype && isFloat(here.dtype) && here.dtype !== dtype ? cast(here, dtype) : here;
  }
  const isMovable = typeof value === "object" && value !== null && "on" in value && typeof value.on === "function";
  return isMovable ? (value as Movable<unknown>).on(device) : value;
}

function refuseGradients({ path }: PlacedUnit, module: Module, args: readonly unknown[]): void {
  if (!isGradEnabled()) return;
  const wants = (t: unknown): boolean => t instanceof Tensor && t.requiresGrad;
  if (!args.some(wants) && !module.parameters().some(wants)) return;
  const rule = `forward: gradients must not be wanted from ${path}, whose weights are offloaded`;
  const advice = "compute inside of noGrad, or load the model to where all of it has room";
  throw new BnbError("ERR_BNB_UNSUPPORTED", `${rule}; ${advice}`);
}

/** Puts a method of its own before the one that an object inherits. */
function shadow(object: object, method: string, value: Method): void {
  Object.defineProperty(object, method, { configurable: true, enumerable: false, writable: true, value });
}

/** What of a unit is large: weights, and the statistics of blocks. */
function tensorsOf(unit: Module): Tensor[] {
  const found = new Set<Tensor>();
  for (const module of unit.modules()) {
    for (const { value } of module.members()) {
      if (!(value instanceof Tensor)) continue;
      found.add(value);
      if (value instanceof Parameter) for (const part of value.statistics) found.add(part);
    }
  }
  return [...found];
}

/** Gives tensors that wait to be loaded another device or dtype; those of `except` have theirs. */
function replant(
  root: Module,
  device: Device,
  dtype: DType | null,
  moved: Map<Tensor, Tensor>,
  except: readonly PlacedUnit[] = [],
): void {
  const others = new Set(except.flatMap(({ module }) => module.modules()));
  for (const module of root.modules()) {
    if (others.has(module)) continue;
    for (const { field, value } of module.members()) {
      if (!(value instanceof Tensor)) continue;
      const type = dtype && isFloat(value.dtype) ? dtype : value.dtype;
      if (value.device === device && value.dtype === type) continue;
      const next = moved.get(value) ?? successor(value, device, type);
      moved.set(value, next);
      Reflect.set(module, field, next);
    }
  }
}

function successor(tensor: Tensor, device: Device, dtype: DType): Tensor {
  const data = noGrad(() =>
    tidy(() => {
      if (isPlaceholder(tensor)) return placeholder(tensor.shape, { dtype, device });
      const here = to(tensor, device);
      return here.dtype === dtype ? here : cast(here, dtype);
    }),
  );
  if (!(tensor instanceof Parameter)) return keep(data);
  const parameter = new Parameter(data, { requiresGrad: tensor.requiresGrad });
  parameter.optimConfig = tensor.optimConfig;
  return parameter;
}
