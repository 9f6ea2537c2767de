// What every language model is, whatever its family: one body over a Pass, and the two passes that drive it.
import { noGrad } from "../autograd/no-grad.js";
import type { GenerationConfig } from "../hub/index.js";
import { embedding, to } from "../ops/index.js";
import { anObject, aTensor, checkArgument, checkTensor } from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Tensor } from "../tensor/tensor.js";
import type { Pass } from "./pass.js";
import { StepPass, TrainingPass } from "./pass.js";
import { RotaryTables } from "./rotary.js";
import type { KvStore, LayerLayout, StepPlan } from "./step-plan.js";
import type { ModelConfig } from "./text-model.js";
import { TextModel } from "./text-model.js";

/** Options of `CausalLM.forward`. */
export interface ForwardOptions {
  /**
   * Packed samples: `ids` is [1, t], rows starts[i] to starts[i + 1] are sample i, which starts at position 0 and sees only
   * itself. int32 [samples + 1].
   */
  starts?: Tensor;
}
const forwardOptions = optionTable<ForwardOptions>({ starts: aTensor });

/**
 * A model that continues texts. A family says what its body computes (`hidden`), how that becomes logits (`head`) and what
 * its attention layers keep (`kvLayout`).
 */
export abstract class CausalLM<C extends ModelConfig = ModelConfig> extends TextModel<C> {
  /** How texts are generated where callers say nothing else: generation_config.json, or empty. */
  generationConfig: GenerationConfig = {};

  /** What its activations are, and so keys and values unless an engine is told otherwise. */
  abstract get dtype(): DType;

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

  /** Logits [..., vocab] of hidden states. */
  protected abstract head(hidden: Tensor): Tensor;

  /** Logits [batch, t, vocab] of ids [batch, t] int32, with gradients. */
  forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return back(this.head(this.#states("forward", ids, options)), ids.device);
  }

  /** What the head takes: hidden states [batch, t, hidden] behind the last norm, with gradients. */
  hiddenStates(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return back(this.#states("hiddenStates", ids, options), ids.device);
  }

  #states(method: string, ids: Tensor, options: ForwardOptions): Tensor {
    const op = this.constructor.name;
    checkTensor(op, "ids", ids);
    checkOptions(`${op}.${method}`, options, forwardOptions);
    if (ids.ndim !== 2) {
      const advice = ids.ndim === 1 ? `; write reshape(ids, [1, ${ids.size}])` : "";
      throw new BnbError("ERR_BNB_SHAPE", `${op}: ids must be [batch, length], got [${ids.shape.join(", ")}]${advice}`);
    }
    using pass = new TrainingPass(ids, { starts: options.starts });
    return this.hidden(pass);
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
