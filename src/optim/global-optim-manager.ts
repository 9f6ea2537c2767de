// Overrides of single parameters' hyperparameters, for all optimizers of the process. Parameters and modules are
// held weakly: an override never keeps one alive.
import { describe, isPlainObject, itemsOf } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Hyperparameters } from "./options.js";
import { checkRanges } from "./options.js";

/** What may be overridden for one parameter. */
export type ParameterConfig = Partial<Omit<Hyperparameters, "trustRatio">>;

const keys: readonly (keyof ParameterConfig)[] = [
  "lr",
  "betas",
  "eps",
  "weightDecay",
  "alpha",
  "tAlpha",
  "tBeta3",
  "optimBits",
  "min8bitSize",
  "maxUnorm",
  "skipZeros",
];

interface ModuleOverride {
  module: WeakRef<object>;
  paramName: string;
  config: ParameterConfig;
}

function checkConfig(config: ParameterConfig): void {
  if (!isPlainObject(config)) {
    throw new BnbError("ERR_BNB_OPTION", `GlobalOptimManager: overrides must be an object, got ${describe(config)}`);
  }
  for (const key of Object.keys(config)) {
    if (!keys.includes(key as keyof ParameterConfig)) {
      throw new BnbError("ERR_BNB_OPTION", `GlobalOptimManager: keys must be among ${keys.join(", ")}, got ${key}`);
    }
  }
  checkRanges("GlobalOptimManager", config);
}

/**
 * Overrides hyperparameters for single parameters, before or after the optimizer is made; optimBits and
 * min8bitSize count until the parameter's first step.
 *
 * @example
 * GlobalOptimManager.getInstance().overrideConfig(model.head.weight, "optimBits", 32);
 */
export class GlobalOptimManager {
  static #instance: GlobalOptimManager | undefined;
  readonly #configs = new WeakMap<object, ParameterConfig>();
  #modules: ModuleOverride[] = [];

  /** The one manager of this process. */
  static getInstance(): GlobalOptimManager {
    GlobalOptimManager.#instance ??= new GlobalOptimManager();
    return GlobalOptimManager.#instance;
  }

  /** Overrides one key, or several in an object, for one parameter or several. */
  overrideConfig(params: Tensor | Iterable<Tensor>, config: ParameterConfig): void;
  overrideConfig<Key extends keyof ParameterConfig>(
    params: Tensor | Iterable<Tensor>,
    key: Key,
    value: ParameterConfig[Key],
  ): void;
  overrideConfig(params: Tensor | Iterable<Tensor>, keyOrConfig: string | ParameterConfig, value?: unknown): void {
    const config: ParameterConfig = typeof keyOrConfig === "string" ? { [keyOrConfig]: value } : keyOrConfig;
    checkConfig(config);
    const list = itemsOf(params as Iterable<Tensor>) ?? [params as Tensor];
    for (const param of list) this.#configs.set(param, { ...this.#configs.get(param), ...config });
  }

  /** Overrides `config` for whatever parameter the module holds under `paramName` when an optimizer looks. */
  registerModuleOverride(module: object, paramName: string, config: ParameterConfig): void {
    checkConfig(config);
    this.#modules.push({ module: new WeakRef(module), paramName, config });
  }

  /** The overrides of a parameter: its own `optimConfig`, then its module's, then its own entries here; often none. */
  configOf(param: Tensor): ParameterConfig | null {
    let config = (param as { optimConfig?: ParameterConfig | null }).optimConfig ?? null;
    if (config) checkConfig(config);
    if (this.#modules.length > 0) {
      for (const { module, paramName, config: registered } of this.#live()) {
        if (module[paramName] === param) config = { ...config, ...registered };
      }
    }
    const own = this.#configs.get(param);
    return own ? { ...config, ...own } : config;
  }

  // The module overrides whose modules still exist; the others are forgotten.
  #live(): { module: Record<string, unknown>; paramName: string; config: ParameterConfig }[] {
    const live = this.#modules.flatMap((entry) => {
      const module = entry.module.deref() as Record<string, unknown> | undefined;
      return module ? [{ ...entry, module, weak: entry }] : [];
    });
    if (live.length < this.#modules.length) this.#modules = live.map(({ weak }) => weak);
    return live;
  }
}
