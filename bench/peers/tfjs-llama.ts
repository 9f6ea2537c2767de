// A training step of the demo's Llama in @tensorflow/tfjs, from our weights. The packages are no dependency: where they are
// installed (`npm install --no-save @tensorflow/tfjs @tensorflow/tfjs-backend-wasm`) the fastest backend that starts is taken.
import { createRequire } from "node:module";
import { join } from "node:path";

/** What of a tensor of tfjs is used. */
interface T {
  readonly shape: number[];
  add(other: T | number): T;
  sub(other: T | number): T;
  mul(other: T | number): T;
  square(): T;
  mean(axis: number, keepDims: boolean): T;
  rsqrt(): T;
  sigmoid(): T;
  softmax(): T;
  matMul(other: T, transposeA?: boolean, transposeB?: boolean): T;
  reshape(shape: number[]): T;
  transpose(axes: number[]): T;
  tile(times: number[]): T;
  slice(begin: number[], size: number[]): T;
  data(): Promise<Float32Array>;
  dispose(): void;
}

/** What of the package is used. */
interface Tf {
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  getBackend(): string;
  tensor(values: Float32Array | Int32Array, shape: number[], dtype?: string): T;
  variable(initial: T): T;
  concat(parts: T[], axis: number): T;
  oneHot(ids: T, depth: number): T;
  losses: { softmaxCrossEntropy(labels: T, logits: T): T };
  train: { adam(rate: number): { minimize(loss: () => T, returnCost: boolean): T } };
  version: { tfjs: string };
}

/** Sizes of the model. */
export interface Sizes {
  vocabSize: number;
  hiddenSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  theta: number;
  eps: number;
}

/** The package on its fastest backend that starts, or null where it is not installed. */
export async function loadTfjs(): Promise<Tf | null> {
  const require = createRequire(join(process.cwd(), "package.json"));
  let tf: Tf;
  try {
    tf = require("@tensorflow/tfjs") as Tf;
  } catch {
    return null;
  }
  for (const [backend, name] of [
    ["wasm", "@tensorflow/tfjs-backend-wasm"],
    ["cpu", null],
  ] as const) {
    try {
      if (name) require(name);
      if (await tf.setBackend(backend)) break;
    } catch {}
  }
  await tf.ready();
  return tf;
}

/** Loss and one step of Adam, for ids and targets [batch, t]. */
export class TfjsLlama {
  readonly #tf: Tf;
  readonly #sizes: Sizes;
  readonly #weights: ReadonlyMap<string, T>;
  readonly #optimizer: ReturnType<Tf["train"]["adam"]>;

  constructor(
    tf: Tf,
    sizes: Sizes,
    weights: Iterable<readonly [name: string, value: { values: Float32Array; shape: readonly number[] }]>,
    rate: number,
  ) {
    this.#tf = tf;
    this.#sizes = sizes;
    this.#weights = new Map(
      [...weights].map(([name, { values, shape }]) => [name, tf.variable(tf.tensor(values, [...shape]))]),
    );
    this.#optimizer = tf.train.adam(rate);
  }

  /** The loss before the step. */
  async step(ids: Int32Array, targets: Int32Array, batch: number): Promise<number> {
    const cost = this.#optimizer.minimize(() => this.#loss(ids, targets, batch), true);
    const [loss] = await cost.data();
    cost.dispose();
    return loss as number;
  }

  #weight(name: string): T {
    return this.#weights.get(name) as T;
  }

  #loss(ids: Int32Array, targets: Int32Array, batch: number): T {
    const tf = this.#tf;
    const { vocabSize, layers } = this.#sizes;
    const rows = ids.length;
    const hot = (values: Int32Array): T => tf.oneHot(tf.tensor(values, [rows], "int32"), vocabSize).mul(1);
    const table = this.#weight("model.embed_tokens.weight");
    let x = hot(ids).matMul(table);
    for (let i = 0; i < layers; i++) x = this.#layer(x, `model.layers.${i}`, batch);
    const logits = this.#norm(x, "model.norm.weight").matMul(table, false, true);
    return tf.losses.softmaxCrossEntropy(hot(targets), logits);
  }

  #norm(x: T, name: string): T {
    const scale = x.square().mean(-1, true).add(this.#sizes.eps).rsqrt();
    return x.mul(scale).mul(this.#weight(name));
  }

  #linear(x: T, name: string): T {
    return x.matMul(this.#weight(`${name}.weight`), false, true);
  }

  #layer(x: T, path: string, batch: number): T {
    const h = x.add(this.#attend(this.#norm(x, `${path}.input_layernorm.weight`), `${path}.self_attn`, batch));
    const y = this.#norm(h, `${path}.post_attention_layernorm.weight`);
    const gate = this.#linear(y, `${path}.mlp.gate_proj`);
    const hidden = gate.mul(gate.sigmoid()).mul(this.#linear(y, `${path}.mlp.up_proj`));
    return h.add(this.#linear(hidden, `${path}.mlp.down_proj`));
  }

  #attend(x: T, path: string, batch: number): T {
    const { heads, kvHeads, hiddenSize } = this.#sizes;
    const t = (x.shape[0] as number) / batch;
    const dim = hiddenSize / heads;
    const apart = (y: T, count: number): T => y.reshape([batch, t, count, dim]).transpose([0, 2, 1, 3]);
    const repeated = (y: T): T => {
      const times = heads / kvHeads;
      return y
        .reshape([batch * kvHeads, 1, t * dim])
        .tile([1, times, 1])
        .reshape([batch, heads, t, dim]);
    };
    const q = this.#turned(apart(this.#linear(x, `${path}.q_proj`), heads), t, dim);
    const k = repeated(this.#turned(apart(this.#linear(x, `${path}.k_proj`), kvHeads), t, dim));
    const v = repeated(apart(this.#linear(x, `${path}.v_proj`), kvHeads));
    const hidden = new Float32Array(t * t).map((_, i) => (i % t > Math.floor(i / t) ? -1e9 : 0));
    const scores = q
      .matMul(k, false, true)
      .mul(1 / Math.sqrt(dim))
      .add(this.#tf.tensor(hidden, [1, 1, t, t]));
    const mixed = scores.softmax().matMul(v).transpose([0, 2, 1, 3]);
    return this.#linear(mixed.reshape([batch * t, hiddenSize]), `${path}.o_proj`);
  }

  #turned(x: T, t: number, dim: number): T {
    const half = dim / 2;
    const angle = (i: number): number => Math.floor(i / half) * this.#sizes.theta ** (-(i % half) / half);
    const table = (f: (a: number) => number): T =>
      this.#tf.tensor(
        new Float32Array(t * half).map((_, i) => f(angle(i))),
        [1, 1, t, half],
      );
    const [cos, sin] = [table(Math.cos), table(Math.sin)];
    const [b, h] = x.shape as [number, number];
    const part = (from: number): T => x.slice([0, 0, 0, from], [b, h, t, half]);
    const [low, high] = [part(0), part(half)];
    return this.#tf.concat([low.mul(cos).sub(high.mul(sin)), high.mul(cos).add(low.mul(sin))], 3);
  }
}
