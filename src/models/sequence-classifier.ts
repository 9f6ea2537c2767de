// Sequence classification: labels for whole texts or pairs of them, from the hidden state of one token of each.
import { noGrad } from "../autograd/no-grad.js";
import { abs, argmax, cast, embedding, mul, reshape, sigmoid, sign, slice, softmax, sub } from "../ops/index.js";
import { aString, checkArgument } from "../tensor/checks.js";
import { arange } from "../tensor/create.js";
import { describe, isPlainObject } from "../tensor/describe.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { WholeTextOptions } from "./encoder.js";
import { checkWholeTexts } from "./encoder.js";
import { inBatches, packRows, packTexts, refuseEmpty, shortened } from "./packing.js";
import type { ConfigKeys } from "./parts/config-keys.js";
import type { ModelConfig } from "./text-model.js";
import { TextModel } from "./text-model.js";

/** What a config says of its labels. */
export interface Labels {
  /** Names, in the order of the logits. */
  readonly labels: readonly string[];
  /** What becomes of logits: one label of all, any of them, or numbers as they are. */
  readonly problem: "single" | "multiple" | "regression";
  /** The token that fills rows up; null: there is none. */
  readonly padTokenId: number | null;
}

/** Two texts that belong together, such as a question and a passage. */
export interface TextPair {
  readonly text: string;
  readonly textPair: string;
}

/** What a text is. */
export interface Classification {
  /** The label with the largest score. */
  readonly label: string;
  readonly score: number;
  /** Of every label, in the order of `config.labels`: probabilities, for a regression the values. */
  readonly scores: Float32Array;
}

/** A model that gives a logit per label for each text. */
export abstract class SequenceClassifier<C extends ModelConfig & Labels = ModelConfig & Labels> extends TextModel<C> {
  /** Which token's hidden state is read: the first, which sees all, or the last of a causal model. */
  protected abstract readonly reads: "first" | "last";

  /** Whether the second text of a pair has a token type of its own. */
  protected readonly hasPairTypes: boolean = true;

  /** Hidden states with the axes of ids. */
  protected abstract hidden(ids: Tensor, options: WholeTextOptions): Tensor;

  /** Logits [texts, labels] of hidden states [texts, hidden]. */
  protected abstract head(states: Tensor): Tensor;

  /**
   * Logits [texts, labels] of ids int32, with gradients: of packed texts [1, t] with `starts`, or of rows [texts, t], padded
   * with an `attentionMask`. Of a row a causal model reads the last token that is not the pad token, whatever the mask says.
   * Without a mask padding is seen, unless it is on the right of a causal model.
   */
  forward(ids: Tensor, options: WholeTextOptions = {}): Tensor {
    checkWholeTexts(this.constructor.name, ids, options);
    const { attentionMask, tokenTypeIds: types } = options;
    if (!attentionMask) return this.#logits(ids, options, () => this.#readTokens(ids, options.starts));
    const { ids: row, starts, firsts } = packRows(ids, attentionMask);
    const own = { starts, ...(types && { tokenTypeIds: reshape(types, row.shape) }) };
    return this.#logits(row, own, () => (this.reads === "first" ? firsts : this.#readTokens(ids, undefined)));
  }

  #logits(ids: Tensor, options: WholeTextOptions, read: () => Tensor): Tensor {
    const hidden = this.hidden(ids, options);
    return this.head(embedding(noGrad(read), reshape(hidden, [ids.size, -1])));
  }

  /**
   * The label of each text, or of each pair of texts.
   *
   * @example
   * const model = await AutoModelForSequenceClassification.fromPretrained("cross-encoder/ms-marco-MiniLM-L6-v2");
   * const [{ score }] = await model.classify([{ text: "what is nf4?", textPair: "NF4 is a data type." }]);
   */
  async classify(texts: string | TextPair): Promise<Classification>;
  async classify(texts: readonly (string | TextPair)[]): Promise<Classification[]>;
  async classify(
    texts: string | TextPair | readonly (string | TextPair)[],
  ): Promise<Classification | Classification[]> {
    const list = Array.isArray(texts) ? (texts as readonly (string | TextPair)[]) : [texts as string | TextPair];
    const encoded = await Promise.all(list.map((text, i) => this.#encode(text, Array.isArray(texts) ? i : null)));
    if (list.length === 0) return [];
    refuseEmpty("classify", encoded);
    const found: Classification[] = [];
    for (const batch of inBatches(encoded)) found.push(...(await this.#classify(batch)));
    return Array.isArray(texts) ? found : (found[0] as Classification);
  }

  async #encode(text: string | TextPair, at: number | null): Promise<EncodedText> {
    const tokenizer = this.tokenizerFor("classify");
    const most = this.config.maxPositionEmbeddings;
    if (typeof text === "string") {
      const ids = shortened(await tokenizer.encode(text), most);
      return { ids, types: new Int32Array(ids.length), length: ids.length };
    }
    if (!isPlainObject(text)) {
      const where = at === null ? "" : ` at ${at}`;
      const rule = "classify: texts must be a text, a pair { text, textPair }, or an array of them";
      throw new BnbError("ERR_BNB_ARGUMENT", `${rule}, got ${describe(text)}${where}`);
    }
    checkArgument("classify", "text", text.text, aString);
    checkArgument("classify", "textPair", text.textPair, aString);
    const ids = shortened(await tokenizer.encode(text.text, { textPair: text.textPair }), most);
    // The token that ends the second text ends the first one, too.
    const end = ids.indexOf(ids.at(-1) as number);
    return { ids, types: ids.map((_, i) => (this.hasPairTypes && i > end ? 1 : 0)), length: ids.length };
  }

  async #classify(batch: readonly EncodedText[]): Promise<Classification[]> {
    const { labels, problem } = this.config;
    const scores = noGrad(() =>
      tidy(() => {
        const { ids, starts } = packTexts(
          batch.map((text) => text.ids),
          this.device,
        );
        const types = packTexts(
          batch.map((text) => text.types),
          this.device,
        ).ids;
        const logits = cast(this.forward(ids, { starts, tokenTypeIds: types }), "float32");
        if (problem === "regression") return logits;
        return problem === "multiple" || labels.length === 1 ? sigmoid(logits) : softmax(logits);
      }),
    );
    const all = await scores.floats();
    scores.dispose();
    return batch.map((_, i) => {
      const own = all.slice(i * labels.length, (i + 1) * labels.length);
      const best = own.reduce((top, score, at) => (score > (own[top] as number) ? at : top), 0);
      return { label: labels[best] as string, score: own[best] as number, scores: own };
    });
  }

  /** Which rows of the flattened hidden states are read, int32 [texts]. */
  #readTokens(ids: Tensor, starts: Tensor | undefined): Tensor {
    const isFirst = this.reads === "first";
    if (starts) {
      const texts = starts.size - 1;
      return tidy(() => (isFirst ? slice(starts, 0, 0, texts) : sub(slice(starts, 0, 1), 1)));
    }
    const [rows, length] = ids.shape as [number, number];
    return tidy(() => {
      const { device } = ids;
      const first = mul(arange(0, rows, 1, { device, dtype: "int32" }), length);
      if (isFirst) return first;
      const places = arange(0, length, 1, { device });
      const { padTokenId } = this.config;
      // Ids below 2^24 are exact in float32.
      const isText = padTokenId === null ? null : sign(abs(sub(cast(ids, "float32"), padTokenId)));
      return isText ? first.add(argmax(mul(isText, places), { axis: 1 })) : first.add(length - 1);
    });
  }
}

interface EncodedText {
  readonly ids: Int32Array;
  readonly types: Int32Array;
  readonly length: number;
}

/** The labels of a config.json. Throws ERR_BNB_FORMAT. */
export function readLabels(keys: ConfigKeys): Labels {
  const named = keys.has("id2label") ? (keys.json["id2label"] as unknown) : {};
  if (!isPlainObject(named)) throw badLabels(named);
  const ids = Object.keys(named);
  const count = ids.length || keys.size("num_labels", 2);
  const labels = Array.from({ length: count }, (_, i) => {
    const label = ids.length === 0 ? `LABEL_${i}` : (named as Record<string, unknown>)[i];
    if (typeof label !== "string") throw badLabels(named);
    return label;
  });
  const type = keys.text("problem_type", "single_label_classification");
  const problem = problems[type];
  if (problem) {
    const padTokenId = keys.has("pad_token_id") ? keys.number("pad_token_id") : null;
    return { labels, problem, padTokenId };
  }
  const rule = `config.json: problem_type must be one of ${Object.keys(problems).join(", ")}`;
  throw new BnbError("ERR_BNB_FORMAT", `${rule}, got ${JSON.stringify(type)}`);
}

const problems: Readonly<Record<string, Labels["problem"]>> = {
  single_label_classification: "single",
  multi_label_classification: "multiple",
  regression: "regression",
};

const badLabels = (got: unknown): BnbError =>
  new BnbError(
    "ERR_BNB_FORMAT",
    `config.json: id2label must name every label from 0 on, got ${JSON.stringify(got).slice(0, 100)}`,
  );
