// What every language model is, whatever its family: one body over a Pass, and the two passes that drive it.
import { isGradEnabled, noGrad } from "../autograd/no-grad.js";
import type { GenerationConfig } from "../hub/index.js";
import type { Embedding } from "../nn/index.js";
import { embedding, linear, to } from "../ops/index.js";
import { anObject, aTensor, checkArgument, checkTensor, orNull } from "../tensor/checks.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { Tensor } from "../tensor/tensor.js";
import type { Pass } from "./pass.js";
import { StepPass, TrainingPass } from "./pass.js";
import type { HeadFormat, OutputProjection } from "./quantized-head.js";
import { aHeadFormat, QuantizedHead } from "./quantized-head.js";
import { RotaryTables } from "./rotary.js";
import type { KvStore, LayerLayout, StepPlan } from "./step-plan.js";
import type { ModelConfig } from "./text-model.js";
import { refuseSpread, TextModel } from "./text-model.js";

/** Options of `CausalLM.forward`. */
export interface ForwardOptions {
  /**
   * Packed samples: `ids` is [1, t], rows starts[i] to starts[i + 1] are sample i, which starts at position 0 and sees only
   * itself. int32 [samples + 1].
   */
  starts?: Tensor;
}
const forwardOptions = optionTable<ForwardOptions>({ starts: aTensor });

/** @internal The halves of a forward pass, for those who need the logits of some rows at a time. */
export interface ModelHalves {
  readonly hidden: Tensor; // [..., hidden]
  /** Logits of some of the hidden states. */
  readonly head: (hidden: Tensor) => Tensor;
  /** What of the head learns: the leaves of its graph, and maybe others. */
  readonly learning: readonly Tensor[];
  readonly vocab: number;
}

/**
 * A model that continues texts. A family says what its body computes (`hidden`), what makes logits of that
 * (`outputProjection`, `logits`) and what its attention layers keep (`kvLayout`).
 */
export abstract class CausalLM<C extends ModelConfig = ModelConfig> extends TextModel<C> {
  /** How texts are generated where callers say nothing else: generation_config.json, or empty. */
  generationConfig: GenerationConfig = {};

  /**
   * Whether `forward` keeps of each block only its input for `backward()`, which then computes the rest again, to the same
   * bits: less memory for a third more time. Its ids and starts must live until then.
   */
  gradientCheckpointing = false;

  /** Of `gradientCheckpointing`: bytes of activations that may be kept all the same, so that fewer blocks are computed again. */
  activationBudget = 0;

  #quantizedHead: QuantizedHead | null = null;

  /** The table that makes hidden states of ids. */
  protected abstract inputEmbedding(): Embedding;

  /** What makes logits of hidden states: a layer, or the weight [vocab, hidden] that the embedding shares with it. */
  protected abstract outputProjection(): OutputProjection;

  override get device(): Device {
    return this.inputEmbedding().weight.device;
  }

  /** What its activations are, and so keys and values unless an engine is told otherwise. */
  get dtype(): DType {
    return this.inputEmbedding().weight.dtype;
  }

  /** What each attention layer keeps of a token, in the order of the numbers that the body gives to `pass.attend`. */
  abstract kvLayout(): readonly LayerLayout[];

  /**
   * A number for the way in which positions turn in a text of `longest` tokens: texts of different ones do not share a step,
   * nor what has been computed.
   */
  positionRule(longest: number): number {
    const { rope, maxPositionEmbeddings } = this.config;
    return rope ? RotaryTables.lengthFor(rope, maxPositionEmbeddings, longest) : 0;
  }

  /** Hidden states with the leading axes of `pass.ids`. */
  protected abstract hidden(pass: Pass): Tensor;

  /** What becomes of the projected hidden states [..., vocab]. */
  protected logits(projected: Tensor): Tensor {
    return projected;
  }

  /** Logits [..., vocab] of hidden states. */
  protected head(hidden: Tensor): Tensor {
    const projection = this.outputProjection();
    const quantized = isGradEnabled() ? null : this.#quantizedHead;
    if (quantized) return this.logits(quantized.forward(back(hidden, quantized.layer.weight.device), projection));
    return this.#floatHead(hidden, projection);
  }

  #floatHead(hidden: Tensor, projection: OutputProjection): Tensor {
    return this.logits(projection instanceof Tensor ? linear(hidden, projection, null) : projection.forward(hidden));
  }

  /**
   * Keeps a copy of the output projection in int8 (as `Linear8bitLt`, threshold 6) or in blocks of 4 bits, by which logits
   * are computed wherever no gradients are recorded; null drops it. The head of a small model is a large part of what a token
   * reads. What is saved and trained is the float weight; a tied embedding looks up in it.
   *
   * Throws ERR_BNB_UNSUPPORTED if the head is no `Linear`, but quantized already or with adapters, or if weights of the
   * model are offloaded; ERR_BNB_NONFINITE if the head's are not finite.
   */
  quantizeHead(format: HeadFormat | null): this {
    checkArgument("quantizeHead", "format", format, orNull(aHeadFormat));
    if (format !== null && this.isOffloaded) refuseSpread("quantizeHead", "give it more memory");
    const next = format === null ? null : new QuantizedHead(format, this.outputProjection());
    this.#quantizedHead?.dispose();
    this.#quantizedHead = next;
    return this;
  }

  /** The format of the head's copy that `quantizeHead` made, or null. */
  get headFormat(): HeadFormat | null {
    return this.#quantizedHead?.format ?? null;
  }

  override to(device: DeviceLike): this {
    super.to(device);
    this.#quantizedHead?.layer.to(device);
    return this;
  }

  override memoryFootprint(): number {
    return super.memoryFootprint() + (this.#quantizedHead?.layer.memoryFootprint() ?? 0);
  }

  override dispose(): void {
    this.#quantizedHead?.dispose();
    super.dispose();
  }

  /** Logits [batch, t, vocab] of ids [batch, t] int32, with gradients. */
  forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return back(this.head(this.#states("forward", ids, options)), ids.device);
  }

  /** What the head takes: hidden states [batch, t, hidden] behind the last norm, with gradients. */
  hiddenStates(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return back(this.#states("hiddenStates", ids, options), ids.device);
  }

  /** @internal Without the copy that `quantizeHead` keeps: a loss is that of the weights that learn. */
  inHalves(ids: Tensor, options: ForwardOptions = {}): ModelHalves {
    const hidden = this.#states("forward", ids, options);
    const projection = this.outputProjection();
    // A shared table may be computed, from rows of an adapter: what learns is what it is computed from.
    const owner = projection instanceof Tensor ? this.inputEmbedding() : projection;
    return {
      hidden,
      head: (rows) => back(this.#floatHead(rows, this.outputProjection()), ids.device),
      learning: owner.parameters().filter(({ requiresGrad }) => requiresGrad),
      vocab: this.config.vocabSize,
    };
  }

  #states(method: string, ids: Tensor, options: ForwardOptions): Tensor {
    const op = this.constructor.name;
    checkTensor(op, "ids", ids);
    checkOptions(`${op}.${method}`, options, forwardOptions);
    if (ids.ndim !== 2) {
      const advice = ids.ndim === 1 ? `; write reshape(ids, [1, ${ids.size}])` : "";
      throw new BnbError("ERR_BNB_SHAPE", `${op}: ids must be [batch, length], got [${ids.shape.join(", ")}]${advice}`);
    }
    const { gradientCheckpointing: recomputes, activationBudget } = this;
    const pass = new TrainingPass(ids, { starts: options.starts, recomputes, activationBudget });
    try {
      return this.hidden(pass);
    } finally {
      // What is computed again reads it, too.
      if (!pass.recomputes || !isGradEnabled()) pass[Symbol.dispose]();
    }
  }

  /** Logits [rows, vocab] of the rows that a plan wants; keys and values go into pages. Without gradients. */
  step(plan: StepPlan, kv: KvStore): Tensor {
    const op = `${this.constructor.name}.step`;
    checkArgument(op, "plan", plan, anObject);
    checkArgument(op, "kv", kv, anObject);
    return noGrad(() => {
      using pass = new StepPass(plan, kv);
      const hidden = this.hidden(pass);
      const { logitRows } = plan;
      const wanted = logitRows ? embedding(back(logitRows, hidden.device), hidden) : hidden;
      return back(this.head(wanted), plan.ids.device);
    });
  }
}

/** x where the caller is, if a model on several devices left it elsewhere. */
const back = (x: Tensor, device: Device): Tensor => (x.device === device ? x : to(x, device));
