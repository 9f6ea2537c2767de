// A causal language model with a head of labels in place of the one over the vocabulary, as transformers'
// ...ForSequenceClassification: the body's modules keep their names, and the head is called score.
import type { Member, UnaryModule } from "../nn/index.js";
import { Linear } from "../nn/index.js";
import type { Device } from "../tensor/device.js";
import type { Tensor } from "../tensor/tensor.js";
import type { CausalLM } from "./causal-lm.js";
import type { WholeTextOptions } from "./encoder.js";
import type { ModelOptions } from "./parts/model-options.js";
import type { Labels } from "./sequence-classifier.js";
import { SequenceClassifier } from "./sequence-classifier.js";
import type { ModelConfig } from "./text-model.js";

/** Labels of whole texts by the last token's hidden state of a causal language model. */
export class CausalSequenceClassifier extends SequenceClassifier {
  protected override readonly reads = "last";
  score: UnaryModule;
  readonly #body: CausalLM;
  readonly #head: string;

  /** `head` is the name of the body's own head, which is not used; `width` is that of the hidden states. */
  constructor(body: CausalLM, labels: Labels, head: string, width: number, options: ModelOptions) {
    const { vocabSize, maxPositionEmbeddings }: ModelConfig = body.config;
    super({ vocabSize, maxPositionEmbeddings, ...labels });
    this.#body = body;
    this.#head = head;
    this.score = new Linear(width, labels.labels.length, { bias: false, ...options });
  }

  override get device(): Device {
    return this.#body.device;
  }

  override members(): Member[] {
    return [...this.#body.members().filter(({ name }) => name !== this.#head), ...super.members()];
  }

  override dispose(): void {
    this.#body.dispose();
    super.dispose();
  }

  protected override hidden(ids: Tensor, { starts }: WholeTextOptions): Tensor {
    return this.#body.hiddenStates(ids, starts ? { starts } : {});
  }

  protected override head(states: Tensor): Tensor {
    return this.score.forward(states);
  }
}
