// A mixture of experts in the place of an MLP (Shazeer et al., 2017): a router chooses a few of many MLPs for each token.
import type { UnaryModule } from "../../nn/index.js";
import { Linear, Module, ModuleList } from "../../nn/index.js";
import { plainWeight } from "../../nn/plain-weight.js";
import type { ExpertChoice } from "../../ops/index.js";
import {
  add,
  cast,
  chooseExperts,
  expertsSwiglu,
  expertWeights,
  minimum,
  mul,
  reshape,
  square,
  sub,
  sum,
} from "../../ops/index.js";
import type { Device } from "../../tensor/device.js";
import type { ExpertWeights, Quantized4Bit } from "../../tensor/quantized.js";
import { keep } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";
import { GatedMlp } from "./gated-mlp.js";
import type { ModelOptions } from "./model-options.js";

export interface ExpertsOptions {
  experts: number;
  /** How many experts a token chooses. */
  chosen: number;
  /** Width of an expert. */
  intermediateSize: number;
  /** Whether the shares of the chosen are divided by their sum. */
  isNormalized: boolean;
  activation: string;
}

type Matrix = Quantized4Bit | Tensor;

/** `residual + the sum of share[e] * expert[e](x)` over the experts that the router chose. */
export class Experts extends Module {
  gate: UnaryModule;
  experts: ModuleList<GatedMlp>;
  readonly #own: ExpertsOptions;
  /**
   * The matrices of the experts behind one handle, or null if they are no set; found at the first pass over them, and again
   * when one is another.
   */
  #weights: { of: readonly Matrix[]; made: ExpertWeights | null } | null = null;

  constructor(hiddenSize: number, options: ModelOptions, own: ExpertsOptions, Expert: typeof GatedMlp) {
    super();
    const { experts, intermediateSize, activation } = own;
    this.gate = new Linear(hiddenSize, experts, { bias: false, ...options });
    const sizes = { hiddenSize, intermediateSize, activation };
    this.experts = new ModuleList(Array.from({ length: experts }, () => new Expert(sizes, options)));
    this.#own = own;
  }

  /** x and residual [..., hidden]. */
  forward(x: Tensor, residual: Tensor): Tensor {
    const { chosen, isNormalized } = this.#own;
    const rows = reshape(x, [-1, x.shape.at(-1) as number]);
    const choice = chooseExperts(this.gate.forward(rows), chosen, { normalize: isNormalized });
    const to = reshape(residual, rows.shape);
    const weights = x.dtype === residual.dtype ? this.#frozenWeights() : null;
    const y = weights ? expertsSwiglu(rows, choice, weights, to) : this.#dense(rows, choice, to);
    return reshape(y, x.shape);
  }

  /** Every expert over every token, and what was not chosen counts zero: for layers of any kind, with their gradients. */
  #dense(rows: Tensor, { shares, experts }: ExpertChoice, residual: Tensor): Tensor {
    const ids = cast(experts, "float32");
    let y = residual;
    let e = 0;
    for (const expert of this.experts) {
      const isOther = minimum(square(sub(ids, e++)), 1);
      const share = sum(sub(shares, mul(shares, isOther)), { axis: 1, keepDims: true });
      y = add(y, mul(expert.forward(rows), cast(share, rows.dtype)));
    }
    return y;
  }

  /** Null unless all experts are gated by SiLU and of plain layers of one kind that want no gradient. */
  #frozenWeights(): ExpertWeights | null {
    const of: Matrix[] = [];
    for (const expert of this.experts) {
      if (!isPlainSwiglu(expert)) return null;
      for (const layer of [expert.gateProj, expert.upProj, expert.downProj]) {
        const matrix = plainWeight(layer);
        if (!matrix) return null;
        of.push(matrix);
      }
    }
    const known = this.#weights;
    if (known?.of.every((matrix, i) => matrix === of[i])) return known.made;
    this.#forgetWeights();
    const part = (which: number): Matrix[] => of.filter((_, i) => i % 3 === which);
    const made = of.every((matrix) => isLike(matrix, of[0] as Matrix))
      ? keep(expertWeights(part(0), part(1), part(2)))
      : null;
    this.#weights = { of, made };
    return made;
  }

  #forgetWeights(): void {
    this.#weights?.made?.dispose();
    this.#weights = null;
  }

  protected override moveTensors(device: Device, moved: Map<Tensor, Tensor>): void {
    this.#forgetWeights();
    super.moveTensors(device, moved);
  }

  override dispose(): void {
    this.#forgetWeights();
    super.dispose();
  }
}

function isPlainSwiglu(expert: GatedMlp): boolean {
  return expert.isSwiglu && expert.forward === GatedMlp.prototype.forward;
}

function isLike(a: Matrix, b: Matrix): boolean {
  const dtypeOf = (matrix: Matrix): string => ("dtype" in matrix ? matrix.dtype : "4-bit");
  return a.device === b.device && dtypeOf(a) === dtypeOf(b);
}
