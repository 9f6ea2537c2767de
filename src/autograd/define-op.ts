// defineOp: the only way to make a differentiable op.
import { anObject, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { NativeObject } from "../tensor/native-object.js";
import { Tensor } from "../tensor/tensor.js";
import type { Edge, Saved } from "./graph.js";
import { GradNode } from "./graph.js";
import { isGradEnabled, noGrad } from "./no-grad.js";

/** What an op keeps between its forward and its backward pass. */
export interface OpContext<Saved extends readonly unknown[] = readonly unknown[]> {
  /**
   * Keeps values for `backward`. Each tensor among them is a holder of its own, so disposing the original is safe;
   * changing it in place is not, and makes backward() throw. Numbers and options are kept as they are.
   */
  save(...values: Saved): void;
  readonly saved: Saved;
  /** Whether the gradient of the i-th tensor argument is wanted; for a list, of any tensor in it. */
  needs(i: number): boolean;
}

type IsTensor<T> = [T] extends [Tensor | null | undefined] ? true : false;
type IsTensorList<T> = [T] extends [readonly Tensor[]] ? true : false;

/** One gradient per tensor argument, in order; a list of them for a list. A missing or extra one is a type error. */
export type GradsOf<Args extends readonly unknown[]> = Grads<Required<Args>>;
type Grads<Args extends readonly unknown[]> = Args extends readonly [infer Head, ...infer Rest]
  ? IsTensor<Head> extends true
    ? readonly [Tensor | null, ...Grads<Rest>]
    : IsTensorList<Head> extends true
      ? readonly [readonly (Tensor | null)[], ...Grads<Rest>]
      : Grads<Rest>
  : readonly [];

/** What `defineOp` makes a differentiable function of: its arguments, and the tensors that its gradient needs. */
export interface OpSpec<Args extends unknown[], Saved extends readonly unknown[]> {
  /** As in error messages. */
  name: string;
  /**
   * How many arguments the op takes: more are ERR_BNB_ARGUMENT, so that softmax(x, 1) does not pass for a choice of axis. Array's
   * map, which gives an index and the array besides, may call an op of one argument all the same. Default: not counted.
   */
  arity?: number;
  /** Calls native ops. Returns a new tensor, never one of its arguments. */
  forward(ctx: OpContext<Saved>, ...args: Args): Tensor;
  /** `null` states that the op is not differentiable; leaving it out is a type error. */
  backward: ((ctx: OpContext<Saved>, dy: Tensor) => GradsOf<Args>) | null;
}

class Recorder implements OpContext {
  saved: readonly unknown[] = [];
  /** Those of the saved values that lie in native memory. */
  readonly objects: Saved[] = [];
  readonly #wanted: readonly boolean[] | null;
  readonly #args: readonly unknown[];

  /** Null when no graph is built. */
  constructor(wanted: readonly boolean[] | null, args: readonly unknown[]) {
    this.#wanted = wanted;
    this.#args = args;
  }

  save(...values: readonly unknown[]): void {
    if (this.#wanted) this.saved = values.map((value) => this.#keep(value));
  }

  #keep(value: unknown): unknown {
    if (!NativeObject.is(value)) return value;
    const object = value instanceof Tensor ? value.alias(false) : value;
    this.objects.push({ object, argument: this.#args.indexOf(value) });
    return object;
  }

  needs(i: number): boolean {
    return this.#wanted?.[i] ?? false;
  }
}

/** What ops outside a graph get: it keeps nothing, so one serves them all. */
const forgetful = new Recorder(null, []);

type Input = Tensor | null | readonly Tensor[];

/**
 * Makes a differentiable function from a forward and a backward pass. In `args`, null stands for an absent tensor
 * and for nothing else. Gradients of gradients are not supported: a backward calls native ops directly.
 */
export function defineOp<Args extends unknown[], Saved extends readonly unknown[]>(
  spec: OpSpec<Args, Saved>,
): (...args: Args) => Tensor {
  checkArgument("defineOp", "spec", spec, anObject);
  const arity = spec.arity ?? Infinity;
  return (...args) => {
    if (args.length > arity) args = takeArguments(spec.name, arity, args);
    if (!spec.backward || !isGradEnabled() || !anyWantsGradient(args)) {
      return spec.forward(forgetful as unknown as OpContext<Saved>, ...args);
    }
    const inputs = tensorInputs(args);
    const recorder = new Recorder(inputs.map(wantsGradient), args);
    const ctx = recorder as unknown as OpContext<Saved>;
    const y = noGrad(() => spec.forward(ctx, ...args));
    const edges = inputs.flat().map(edgeTo);
    y.requiresGrad = true;
    y.node = new GradNode(
      spec.name,
      edges,
      recorder.objects,
      (dy) => (spec.backward as NonNullable<typeof spec.backward>)(ctx, dy).flat() as (Tensor | null)[],
    );
    return y;
  };
}

/** The arguments without those that only map() gave. */
function takeArguments<Args extends unknown[]>(op: string, arity: number, args: Args): Args {
  const [value, index, list] = args as unknown[];
  const isPlace = typeof index === "number" && Array.isArray(list) && list[index] === value;
  const isMapped = arity === 1 && args.length === 3 && isPlace;
  if (isMapped) return [value] as unknown[] as Args;
  const count = arity === 1 ? "1 argument" : `${arity} arguments`;
  throw new BnbError("ERR_BNB_ARGUMENT", `${op}: it takes ${count}, got ${args.length}`);
}

// Without an allocation: most calls are made outside a graph.
function anyWantsGradient(args: readonly unknown[]): boolean {
  for (const arg of args) {
    if (arg instanceof Tensor ? arg.requiresGrad : Array.isArray(arg) && isTensorList(arg) && wantsGradient(arg)) {
      return true;
    }
  }
  return false;
}

function isTensorList(list: readonly unknown[]): list is readonly Tensor[] {
  return list[0] instanceof Tensor;
}

function tensorInputs(args: readonly unknown[]): Input[] {
  const isInput = (arg: unknown): arg is Input =>
    arg === null || arg instanceof Tensor || (Array.isArray(arg) && isTensorList(arg));
  return args.filter(isInput);
}

function wantsGradient(input: Input): boolean {
  if (input === null) return false;
  return input instanceof Tensor ? input.requiresGrad : input.some((t) => t.requiresGrad);
}

function edgeTo(input: Tensor | null): Edge {
  if (!input?.requiresGrad) return null;
  return (input.node as GradNode | null) ?? input;
}
