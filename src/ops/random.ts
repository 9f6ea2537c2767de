// Random tensors from a counter-based generator: the same seed gives the same bits on every machine.
import { addon } from "../tensor/addon.js";
import { aNumber, anInstance, aShape, checkArgument, required } from "../tensor/checks.js";
import type { TensorOptions } from "../tensor/create.js";
import { tensorChecks } from "../tensor/create.js";
import { describe } from "../tensor/describe.js";
import { toDevice } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { dtypeCode, isFloat } from "../tensor/dtype.js";
import type { Distribution } from "../tensor/enums.js";
import { distributions } from "../tensor/enums.js";
import { BnbError } from "../tensor/errors.js";
import { generatorNotCloneable } from "../tensor/native-only.js";
import type { OptionTable } from "../tensor/options.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { run } from "../tensor/run.js";
import { checkShape, elementCount } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";

/** Where a generator stands: a stream, and how many blocks of four numbers were taken from it. */
export interface GeneratorState {
  seed: number;
  offset: number;
}

/**
 * A stream of random numbers: Philox4x32-10, so what it gives depends on seed and offset alone, not on the device's
 * instruction set or number of threads. Cheap to make; holds no native memory.
 *
 * @example
 * const generator = new Generator(42);
 * randn([2, 3], { generator });
 */
export class Generator {
  /** @internal By it `structuredClone` refuses. */
  readonly transfer: typeof generatorNotCloneable = generatorNotCloneable;
  #seed = 0;
  #offset = 0;

  /** `seed`: a whole number from 0 to 2^53 - 1. Default: chosen at random. */
  constructor(seed: number = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER)) {
    this.state = { seed, offset: 0 };
  }

  get state(): GeneratorState {
    return { seed: this.#seed, offset: this.#offset };
  }
  set state({ seed, offset }: GeneratorState) {
    for (const value of [seed, offset]) {
      if (!Number.isSafeInteger(value) || value < 0) {
        const rule = "Generator: seed and offset must be whole numbers from 0 to 2^53 - 1";
        throw new BnbError("ERR_BNB_OPTION", `${rule}, got ${describe(value)}`);
      }
    }
    this.#seed = seed;
    this.#offset = offset;
  }

  /** The state: what `new Generator().state` takes. */
  toJSON(): GeneratorState {
    return this.state;
  }

  /** Starts the stream of another seed. */
  manualSeed(seed: number): this {
    this.state = { seed, offset: 0 };
    return this;
  }

  /** @internal The seed of another stream, each time a new one. */
  nextSeed(): number {
    const { seed, offset } = this.take(4);
    const mixed = BigInt(seed) * 0x9e3779b97f4a7c15n + BigInt(offset) * 0xd1b54a32d192ed03n;
    return Number(BigInt.asUintN(64, mixed) >> 12n); // the upper bits, which depend on all others
  }

  /** @internal Takes the blocks for n numbers; returns where they start. */
  take(n: number): GeneratorState {
    const start = this.state;
    if (draws && !draws.has(this)) draws.set(this, start);
    this.#offset += Math.ceil(n / 4);
    return start;
  }
}

/** @internal Generators that were drawn from, each with the state before. */
export type Draws = ReadonlyMap<Generator, GeneratorState>;
let draws: Map<Generator, GeneratorState> | null = null;

/** @internal What `fn` gives, and what it drew from. */
export function recordDraws<T>(fn: () => T): [result: T, draws: Draws] {
  const outer = draws;
  const own = new Map<Generator, GeneratorState>();
  draws = own;
  try {
    return [fn(), own];
  } finally {
    draws = outer;
    for (const [generator, state] of own) if (outer && !outer.has(generator)) outer.set(generator, state);
  }
}

/** @internal Runs `fn` so that it draws what it drew when that was recorded; generators are then as they were. */
export function replayDraws<T>(recorded: Draws, fn: () => T): T {
  const now = [...recorded.keys()].map((generator) => [generator, generator.state] as const);
  for (const [generator, state] of recorded) generator.state = state;
  try {
    return fn();
  } finally {
    for (const [generator, state] of now) generator.state = state;
  }
}

/** What is used where no generator is given. Starts from a random seed; see `manualSeed`. */
export const defaultGenerator = new Generator();

/** Seeds the default generator, so that a program gives the same numbers each time. */
export function manualSeed(seed: number): Generator {
  return defaultGenerator.manualSeed(seed);
}

/** Options of `rand`, `randn` and `randint`. */
export interface RandomOptions extends TensorOptions {
  /** Default: `defaultGenerator`. */
  generator?: Generator;
}

/** @internal */
export const aGenerator = anInstance(() => Generator, "a Generator");
const randomChecks = { ...tensorChecks, generator: aGenerator };
type RandOptions = RandomOptions & { low?: number; high?: number };
const randOptions = optionTable<RandOptions>({ ...randomChecks, low: aNumber, high: aNumber });
type RandnOptions = RandomOptions & { mean?: number; std?: number };
const randnOptions = optionTable<RandnOptions>({ ...randomChecks, mean: aNumber, std: aNumber });
type RandintOptions = RandomOptions & { low?: number; high: number };
const randintOptions = optionTable<RandintOptions>({
  ...randomChecks,
  low: aNumber,
  high: required(aNumber),
});

function check<O>(op: string, shape: readonly number[], options: O, table: OptionTable<O>): void {
  checkArgument(op, "shape", shape, aShape);
  checkOptions(op, options, table);
}

const names: Readonly<Record<Distribution, string>> = { uniform: "rand", normal: "randn", integer: "randint" };

function fill(
  distribution: Distribution,
  shape: readonly number[],
  [low, high]: [number, number],
  dtype: DType,
  options: RandomOptions,
): Tensor {
  const { device, generator = defaultGenerator, requiresGrad = false } = options;
  if (requiresGrad && !isFloat(dtype)) {
    throw new BnbError("ERR_BNB_DTYPE", `tensor: requiresGrad needs float32, float16 or bfloat16, got ${dtype}`);
  }
  const sizes = checkShape(names[distribution], shape);
  const { seed, offset } = generator.state;
  const code = dtypeCode(dtype);
  const kind = distributions.indexOf(distribution);
  const [y] = run(addon.randomFill, sizes, code, toDevice(device).index, kind, low, high, seed, offset);
  generator.take(elementCount(sizes));
  y.requiresGrad = requiresGrad;
  return y;
}

/** Uniform in [low, high), default [0, 1), in steps of 2^-24 of the width. Default dtype float32. */
export function rand(shape: readonly number[], options: RandOptions = {}): Tensor {
  check("rand", shape, options, randOptions);
  const { low = 0, high = 1, dtype = "float32" } = options;
  return fill("uniform", shape, [low, high], dtype, options);
}

/** Normal with the given mean and standard deviation, default 0 and 1. Default dtype float32. */
export function randn(shape: readonly number[], options: RandnOptions = {}): Tensor {
  check("randn", shape, options, randnOptions);
  const { mean = 0, std = 1, dtype = "float32" } = options;
  return fill("normal", shape, [mean, std], dtype, options);
}

/**
 * Whole numbers in [low, high) as int32, `low` by default 0.
 *
 * @example
 * randint([8], { high: 256 });
 */
export function randint(shape: readonly number[], options: RandintOptions): Tensor {
  check("randint", shape, options, randintOptions);
  const { low = 0, high, dtype = "int32" } = options;
  return fill("integer", shape, [low, high], dtype, options);
}
