// Rows of an embedding that learn alone: new tokens, or old ones that get another meaning.
import { isGradEnabled, noGrad } from "../autograd/no-grad.js";
import type { Embedding } from "../nn/index.js";
import { Module, Parameter } from "../nn/index.js";
import { cast, concat, embedding, slice } from "../ops/index.js";
import { tensor } from "../tensor/create.js";
import { BnbError } from "../tensor/errors.js";
import { keep, tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { AdapterLayer } from "./adapter-layer.js";
import { deviceOf } from "./base-weight.js";

/** The rows of one adapter, which stand in the place of the table's. */
export class TokenRows extends Module {
  readonly indices: readonly number[];
  /** [indices, dim] float32, in the order of the indices. */
  trainableTokensDelta: Parameter;

  constructor(indices: readonly number[], rows: Tensor) {
    super();
    this.indices = indices;
    this.trainableTokensDelta = new Parameter(rows);
  }

  get tensors(): Parameter[] {
    return [this.trainableTokensDelta];
  }

  forward(): never {
    throw new Error("rows are looked up by their layer");
  }
}

/**
 * An embedding, some of whose rows are replaced by rows that learn. A head that shares the table multiplies by the new
 * rows, too.
 */
export class TrainableTokens extends AdapterLayer<Embedding, TokenRows> {
  #table: Tensor | null = null;
  #madeOf: readonly (readonly [Tensor, number])[] = [];

  get numEmbeddings(): number {
    return this.baseLayer.numEmbeddings;
  }

  get embeddingDim(): number {
    return this.baseLayer.embeddingDim;
  }

  /** The table with the rows of the active adapters. */
  get weight(): Tensor {
    const { weight } = this.baseLayer;
    const rows = this.applied;
    if (rows.length === 0) return weight;
    if (isGradEnabled() && rows.some(({ trainableTokensDelta: t }) => t.requiresGrad)) return this.#with(rows);
    const parts = [weight, ...rows.flatMap(({ tensors }) => tensors)].map((t) => [t, t.version] as const);
    const isSame = parts.length === this.#madeOf.length;
    if (!this.#table || !isSame || parts.some(([t, version], i) => !isEntry(this.#madeOf[i], t, version))) {
      this.#table?.dispose();
      this.#table = noGrad(() => tidy(() => keep(this.#with(rows))));
      this.#madeOf = parts;
    }
    return this.#table;
  }

  addTokens(name: string, indices: readonly number[]): TokenRows {
    const { weight, numEmbeddings } = this.baseLayer;
    const wrong = indices.find((i) => i >= numEmbeddings) ?? indices.find((i, at) => indices.indexOf(i) !== at);
    if (wrong !== undefined || indices.length === 0) {
      const rule = `trainableTokenIndices must be different rows below ${numEmbeddings}`;
      throw new BnbError("ERR_BNB_OPTION", `LoraConfig: ${rule}, got ${wrong ?? "none"}`);
    }
    const ids = tensor(Int32Array.from(indices), { device: deviceOf(this.baseLayer) });
    const rows = noGrad(() => tidy(() => keep(cast(embedding(ids, weight), "float32"))));
    ids.dispose();
    return this.put(name, new TokenRows(indices, rows));
  }

  protected override mergedWith({ indices, trainableTokensDelta: rows }: TokenRows, weight: Tensor): Tensor {
    const order = indices.map((row, at) => ({ row, at })).sort((a, b) => a.row - b.row);
    const parts: Tensor[] = [];
    let next = 0;
    for (const { row, at } of order) {
      if (row > next) parts.push(slice(weight, 0, next, row));
      parts.push(cast(slice(rows, 0, at, at + 1), weight.dtype));
      next = row + 1;
    }
    if (next < (weight.shape[0] as number)) parts.push(slice(weight, 0, next));
    return concat(parts, 0);
  }

  #with(adapters: readonly TokenRows[]): Tensor {
    return adapters.reduce<Tensor>((table, rows) => this.mergedWith(rows, table), this.baseLayer.weight);
  }

  forward(ids: Tensor): Tensor {
    return this.applied.length === 0 ? this.baseLayer.forward(ids) : embedding(ids, this.weight);
  }

  override disposeAdapters(): void {
    this.#table?.dispose();
    this.#table = null;
    super.disposeAdapters();
  }

  override dispose(): void {
    this.#table?.dispose();
    super.dispose();
  }
}

function isEntry(entry: readonly [Tensor, number] | undefined, tensor: Tensor, version: number): boolean {
  return entry?.[0] === tensor && entry[1] === version;
}
