// What one call of the fuzzer does: it makes arguments, at times spoils them, calls, and uses what comes back: reads it,
// differentiates it, disposes of it. A call depends on the seed and its index alone.
import { types } from "node:util";
import { functions, layers, llamaOptions, optimizerOptions, others } from "./recipes.mjs";
import { floats, hostile, ids, number, shape, tensor, wildNumber } from "./values.mjs";

/** @typedef {import("./values.mjs").Random} Random */
/** @typedef {{ B: any, r: Random, note: (what: string, args: unknown[]) => void }} Context */

const isPlain = (/** @type {unknown} */ x) =>
  typeof x === "object" && x !== null && Object.getPrototypeOf(x) === Object.prototype;

/** Changes one argument or option: another value, a slightly other number, one missing, one too many. */
function spoil(/** @type {Context} */ { B, r }, /** @type {unknown[]} */ args) {
  const at = r.int(args.length + 1);
  const target = args[at];
  if (at === args.length) {
    args.push(hostile(B, r));
    return;
  }
  if (isPlain(target) && r.chance(0.8)) {
    const options = /** @type {Record<string, unknown>} */ (target);
    const keys = Object.keys(options);
    const key =
      keys.length && r.chance(0.8) ? r.pick(keys) : r.pick(["axsi", "dim", "__proto__", "out", "device", "dtype"]);
    options[key] = replace({ B, r }, options[key]);
    return;
  }
  const what = r.int(8);
  if (what === 0) args.splice(at);
  else if (what === 1) args.reverse();
  else if (what === 2 && Array.isArray(target) && !types.isProxy(target) && target.length)
    args[at] = put(target, r.int(target.length), hostile(B, r));
  else args[at] = replace({ B, r }, target);
}

/** The list with another item at one place. @param {unknown[]} list @param {number} at @param {unknown} item */
const put = (list, at, item) => [...list.slice(0, at), item, ...list.slice(at + 1)];

/** @param {{ B: any, r: Random }} context @param {any} value */
function replace({ B, r }, value) {
  if (typeof value === "number" && r.chance(0.6))
    return r.pick([value + 1, value - 1, -value, value + 0.5, wildNumber(r), String(value)]);
  if (value instanceof B.Tensor && r.chance(0.7))
    return tensor(B, r, r.chance(0.4) ? [...(value.shape ?? [])] : shape(r));
  return hostile(B, r);
}

/** As they are, with one spoilt, or with several. @param {Context} context @param {unknown[]} args */
function vary(context, args) {
  const { r, B } = context;
  if (r.chance(0.4)) return args;
  spoil(context, args);
  while (r.chance(0.2)) spoil(context, args);
  if (r.chance(0.05))
    for (const arg of /** @type {any[]} */ (args))
      if (arg instanceof B.Tensor && !types.isProxy(arg) && r.chance(0.5)) arg.dispose();
  return args;
}

/** Tensors in a result, a few levels deep. @param {any} B @param {unknown} value @returns {any[]} */
function tensorsIn(B, value, depth = 0) {
  if (value instanceof B.Tensor) return [value];
  if (depth > 3 || typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return [];
  if (value instanceof Map) return [...value.values()].flatMap((item) => tensorsIn(B, item, depth + 1));
  return Object.values(value)
    .slice(0, 20)
    .flatMap((item) => tensorsIn(B, item, depth + 1));
}

/** Uses a result as a program would. Errors of the library on the way are as good as those of the call. */
async function use(/** @type {Context} */ context, /** @type {any} */ result) {
  const { B, r, note } = context;
  if (result instanceof Promise) result = await result;
  if (typeof result?.[Symbol.asyncIterator] === "function") {
    let count = 0;
    for await (const _ of result) if (++count >= 3 && r.chance(0.8)) break;
    return;
  }
  if (typeof result?.next === "function") {
    for (let i = 0; i < 2; i++) result.next();
    return;
  }
  for (const t of tensorsIn(B, result)) {
    if (t.disposed) continue;
    note("use", [t]);
    if (floats.includes(t.dtype) && t.node && r.chance(0.7))
      B.backward(t, t.size === 1 && r.chance(0.5) ? undefined : B.ones(t.shape, { dtype: t.dtype }));
    if (t.size > 1 << 22) continue;
    const how = r.int(5);
    if (how === 0) await t.data();
    else if (how === 1) t.dataSync();
    else if (how === 2 && t.size === 1) await t.item();
    else if (how === 3) String(t);
    else if (t.dtype !== "uint8") t.floatsSync?.();
    if (r.chance(0.3)) t.dispose();
  }
  if (typeof result?.dispose === "function" && r.chance(0.3)) result.dispose();
}

/** @param {Context} context @param {string} name @param {(...args: any[]) => unknown} f @param {unknown[]} args */
async function call(context, name, f, args) {
  context.note(name, args);
  const result = f(...args);
  await use(context, result);
  return result;
}

/** @type {Record<string, (context: Context) => Promise<unknown>>} */
const scenarios = {
  /** A function with a recipe. */
  async known(context) {
    const { B, r } = context;
    const name = r.pick(Object.keys(functions).filter((key) => (B[key] ?? B.functional[key]) !== undefined));
    const args = vary(context, functions[name]?.(B, r) ?? []);
    await call(context, name, B[name] ?? B.functional[name], args);
  },

  /** Anything with anything. */
  async anything(context) {
    const { B, r } = context;
    const [name, f] = r.pick(others(B));
    const args = Array.from({ length: r.int(4) }, () => (r.chance(0.4) ? tensor(B, r) : hostile(B, r)));
    const isClass = /^class\b/.test(Function.prototype.toString.call(f));
    await call(context, name, isClass ? (...a) => Reflect.construct(f, a) : f, args);
  },

  /** A method of a tensor. */
  async method(context) {
    const { B, r } = context;
    const name = r.pick(Object.getOwnPropertyNames(B.Tensor.prototype).filter((key) => !internal.has(key)));
    const t = tensor(B, r);
    const value = Reflect.get(B.Tensor.prototype, name, t);
    if (typeof value !== "function") return;
    const like = Object.hasOwn(functions, name) ? (functions[name]?.(B, r).slice(1) ?? []) : [];
    await call(context, `Tensor.${name}`, (...args) => t[name](...args), vary(context, like));
    context.note("properties", [t]);
    t.requiresGrad = r.chance(0.5);
    t.grad = r.chance(0.5) ? null : tensor(B, r);
  },

  /** Layers: forward, backward, a state dict that was changed, moving, disposing in any order. */
  async layer(context) {
    const { B, r } = context;
    const name = r.pick(Object.keys(layers));
    const { make, input } = /** @type {any} */ (layers[name]);
    const args = r.chance(0.6) ? make(B, r) : vary(context, make(B, r));
    context.note(name, args);
    const layer = new B.nn[name](...args);
    for (let step = 0; step < 3; step++) {
      const what = r.int(8);
      if (what < 4)
        await call(context, `${name}.forward`, (...a) => layer.forward(...a), vary(context, input(B, r, args)));
      else if (what === 4) await stateDict(context, name, layer);
      else if (what === 5) await call(context, `${name}.to`, (...a) => layer.to(...a), vary(context, ["cpu"]));
      else if (what === 6 && layer.quantize) await call(context, `${name}.quantize`, () => layer.quantize(), []);
      else if (r.chance(0.5)) layer.train(r.chance(0.5)).requiresGrad_(r.chance(0.5));
    }
    if (r.chance(0.5)) layer.dispose();
    if (r.chance(0.2))
      await call(context, `${name}.forward, disposed`, (...a) => layer.forward(...a), input(B, r, args));
  },

  /** Optimizers, their groups, schedulers and state dicts. */
  async optimizer(context) {
    const { B, r } = context;
    const names = Object.keys(B.optim).filter(
      (key) => /^[A-Z]/.test(key) && B.optim[key].prototype?.step && !bases.has(key),
    );
    const name = r.pick(names);
    const params = [0, 1].map((i) => {
      const p = new B.nn.Parameter(tensor(B, r, shape(r), i ? "float32" : r.pick(floats)));
      if (r.chance(0.9) && !p.disposed) p.grad = tensor(B, r, p.shape.slice(), p.dtype);
      return p;
    });
    const groups = r.chance(0.3)
      ? params.map((p) => ({ params: [p], ...r.some({ lr: 0.01, weightDecay: 0 }) }))
      : params;
    const args = [groups, optimizerOptions(r)];
    if (r.chance(0.3)) spoil(context, args);
    context.note(name, args);
    const optimizer = new B.optim[name](...args);
    for (let step = 0; step < 4; step++) {
      const what = r.int(9);
      if (what < 3) await call(context, `${name}.step`, () => optimizer.step(), []);
      else if (what === 3) await stateDict(context, name, optimizer);
      else if (what === 4) optimizer.zeroGrad();
      else if (what === 5) {
        const group = r.pick(/** @type {any[]} */ (optimizer.paramGroups));
        const key = r.pick(Object.keys(group));
        context.note("paramGroups", [key]);
        group[key] = r.chance(0.5) ? number(r) : hostile(B, r);
      } else if (what === 6) {
        await call(
          context,
          `${name}.addParamGroup`,
          (group) => optimizer.addParamGroup(group),
          vary(context, [{ params: [new B.nn.Parameter(B.ones([3]))] }]),
        );
      } else if (what === 7) {
        const factor = () => r.pick([1, 0.5, undefined, NaN, "x", -1]);
        const [make, rest] = r.pick([
          [(/** @type {any[]} */ ...a) => new B.optim.LambdaLR(...a), factor],
          [B.optim.linearSchedule, { totalSteps: 10, warmupSteps: 2 }],
          [B.optim.cosineSchedule, { totalSteps: 10, minFactor: 0.1 }],
          [B.optim.constantSchedule, { warmupSteps: 2 }],
        ]);
        const scheduler = make(...vary(context, [optimizer, rest]));
        scheduler.step();
        await stateDict(context, "LambdaLR", scheduler);
      } else await call(context, "clipGradNorm", B.optim.clipGradNorm, vary(context, [params, 1]));
    }
    await optimizer.nonFiniteCount;
    if (r.chance(0.5)) optimizer.dispose();
    for (const p of params) if (r.chance(0.5)) p.dispose();
  },

  /** A small model: adapters, replaced layers, generation, with or without a graph. */
  async model(context) {
    const { B, r } = context;
    const options = llamaOptions(r);
    const args = [options, r.some({ dtype: r.pick(floats) })];
    if (r.chance(0.3)) spoil(context, args);
    context.note("LlamaForCausalLM", args);
    const model = new B.LlamaForCausalLM(...args);
    const nf4 = (/** @type {number} */ i, /** @type {number} */ o, /** @type {boolean} */ bias) =>
      new B.nn.LinearNF4(i, o, { bias });
    for (let step = 0; step < 2; step++) {
      const what = r.int(7);
      if (what === 0)
        await call(
          context,
          "replaceLinear",
          B.nn.replaceLinear,
          vary(context, [model, nf4, r.some({ copyWeights: true, skipModules: ["lm_head"] })]),
        );
      else if (what === 1)
        await call(
          context,
          "applyLora",
          B.applyLora,
          vary(context, [model, { r: 2, targetModules: ["q_proj", "v_proj"] }]),
        );
      else if (what === 2) await stateDict(context, "Llama", model);
      else if (what === 3)
        await call(
          context,
          "Llama.forward",
          (...a) => model.forward(...a),
          vary(context, [ids(B, r, [1, 1 + r.int(4)], 16), {}]),
        );
      else {
        const prompt = r.pick([[1, 2, 3], Int32Array.of(1, 2), new Uint8Array(3), [0]]);
        const draws = { doSample: true, ...r.some({ temperature: 0.7, topK: 3, topP: 0.9, minP: 0.1, typicalP: 0.9 }) };
        const generation = r.some({
          ...{ repetitionPenalty: 1.2, seed: 1, eosTokenId: [2], minNewTokens: 2, noRepeatNgramSize: 2 },
          ...{ suppressTokens: [3], badWordsIds: [[1], [2, 3]], logitBias: { 4: 1 }, promptLookup: r.chance(0.5) },
          ...{ kvDtype: r.pick(["float32", "int8"]), graph: r.chance(0.5), deterministic: r.chance(0.3) },
        });
        const options = { maxNewTokens: 3, ...generation, ...(r.chance(0.5) && draws) };
        const beams = {
          maxNewTokens: 3,
          ...generation,
          numBeams: 2,
          ...r.some({ numReturnSequences: 2, lengthPenalty: 0.5 }),
        };
        const [name, ...args] = r.pick([
          ["generate", prompt, options],
          ["generate", prompt, options],
          ["complete", r.pick([prompt, [prompt, [1]]]), { ...options, ...r.some({ logprobs: 2, kvTokens: 32 }) }],
          ["complete", prompt, beams],
          ["score", [1, 2, 3, 4], r.some({ window: 3, stride: 2 })],
          ["embed", r.pick([prompt, [prompt, [1]]]), r.some({ pooling: "last", normalize: true })],
        ]);
        await call(context, name, B[name], vary(context, [model, ...args]));
      }
    }
    if (r.chance(0.7)) model.dispose();
  },

  /** Recorded work, replayed after what it reads or writes may be gone. */
  async graph(context) {
    const { B, r } = context;
    const [x, y] = [tensor(B, r, [4], "float32"), B.zeros([4])];
    const body = () => {
      const z = r.pick([
        () => B.add(x, 1),
        () => B.softmax(x),
        () => B.matmul(B.reshape(x, [2, 2]), B.reshape(x, [2, 2])).reshape([4]),
      ])();
      if (r.chance(0.8)) B.copyInto(y, z);
      if (r.chance(0.05)) x.dataSync();
      return r.chance(0.1) ? z : undefined;
    };
    context.note("capture", [x]);
    const graph = B.capture(...vary(context, [body]));
    for (let step = 0; step < 4; step++) {
      const what = r.int(5);
      if (what < 2) graph.replay();
      else if (what === 2 && r.chance(0.3)) x.dispose();
      else if (what === 3) B.emptyCache();
      else if (r.chance(0.3)) y.dispose();
    }
    if (!y.disposed) await y.data();
    if (r.chance(0.5)) graph.dispose();
    if (r.chance(0.2)) graph.replay();
  },

  /** Scopes in scopes, with things kept, disposed and returned in odd orders. */
  async scope(context) {
    const { B, r } = context;
    /** @type {any[]} */
    const outside = [tensor(B, r)];
    const inner = (/** @type {number} */ depth) =>
      B.tidy(() => {
        const mine = [tensor(B, r), tensor(B, r), ...outside];
        for (let i = 0; i < 4; i++) {
          const [a, b] = [r.pick(mine), r.pick(mine)];
          const what = r.int(8);
          if (what === 0) B.keep(a);
          else if (what === 1) a.dispose();
          else if (what === 2 && depth < 3) mine.push(...tensorsIn(B, inner(depth + 1)));
          else if (what === 3) outside.push(B.clone(a));
          else if (what === 4) mine.push(B.detach?.(a) ?? B.reshape(a, [-1]));
          else if (what === 5 && a.node) B.backward(B.sum(a));
          else if (a !== b && what === 6) B.copyInto(a, b);
          else mine.push(B.add(a, b));
        }
        return r.pick([mine, mine[0], undefined, { deep: [mine[1]] }, hostile(B, r)]);
      });
    context.note("tidy", []);
    await use(context, inner(0));
    for (const t of outside) t.dispose();
  },
};

// Classes that others extend, and one that is no optimizer.
const bases = new Set(["LambdaLR", "Optimizer8bit", "Optimizer1State", "Optimizer2State"]);
// What the classes share with the rest of the library and nobody else calls.
const internal = new Set([
  "constructor",
  "alias",
  "takeHandle",
  "isHeldBy",
  "replaceHandle",
  "escape",
  "slot",
  "node",
  "held",
  "buffer",
  "single",
  "checkGradient",
]);

/** Saves, changes and loads. @param {Context} context @param {string} name @param {any} owner */
async function stateDict(context, name, owner) {
  const { B, r } = context;
  context.note(`${name}.stateDict`, []);
  const dict = owner.stateDict();
  const change = (/** @type {any} */ object, /** @type {number} */ depth) => {
    const keys = Object.keys(object ?? {});
    if (!keys.length) return;
    const key = r.pick(keys);
    const inner = object[key];
    const isTree = (isPlain(inner) || Array.isArray(inner)) && depth < 4;
    if (isTree && r.chance(0.8)) {
      change(inner, depth + 1);
      return;
    }
    const what = r.int(3);
    if (what === 0) delete object[key];
    else if (what === 1) object[key] = replace({ B, r }, object[key]);
    else object[`${key}x`] = object[key];
  };
  const copy = dict instanceof Map ? new Map(dict) : isPlain(dict) ? { ...dict } : dict;
  if (r.chance(0.6) && !(copy instanceof Map)) change(copy, 0);
  await call(context, `${name}.loadStateDict`, (...args) => owner.loadStateDict(...args), [
    copy,
    ...(r.chance(0.3) ? [{ strict: r.chance(0.5) }] : []),
  ]);
}

/** How often each kind runs; models and optimizers cost more. */
const weights = { known: 40, method: 12, anything: 12, layer: 14, optimizer: 8, model: 3, graph: 5, scope: 6 };
const kinds = Object.entries(weights).flatMap(([kind, weight]) => new Array(weight).fill(kind));

/** Runs one call. @param {Context} context */
export async function runCall(context) {
  const kind = context.r.pick(kinds);
  context.note(kind, []);
  await scenarios[kind]?.(context);
}
