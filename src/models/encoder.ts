// Encoders: models whose tokens see the whole text. They give hidden states, and a vector for each text.
import { noGrad } from "../autograd/no-grad.js";
import type { Embedding } from "../nn/index.js";
import { concat, reshape, to } from "../ops/index.js";
import {
  aBoolean,
  anInteger,
  arrayOf,
  aString,
  aTensor,
  checkArgument,
  checkTensor,
  either,
  oneOf,
} from "../tensor/checks.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { inBatches, packRows, packTexts, refuseEmpty, shortened } from "./packing.js";
import type { Pass } from "./pass.js";
import { TrainingPass } from "./pass.js";
import type { Pooling } from "./pooling.js";
import { pool, poolings } from "./pooling.js";
import type { ModelConfig } from "./text-model.js";
import { TextModel } from "./text-model.js";

/** What those who drive an encoder must know of it. */
export interface EncoderConfig extends ModelConfig {
  readonly hiddenSize: number;
}

/** How the tokens of an encoder lie. */
export interface WholeTextOptions {
  /**
   * Packed samples of any lengths, which need no padding: `ids` is [1, t], and rows starts[i] to starts[i + 1] are sample i.
   * int32 [samples + 1].
   */
  starts?: Tensor;
  /** Which of two texts a token is of, int32, as `ids`; default 0, for models that have types. */
  tokenTypeIds?: Tensor;
  /**
   * Of rows that are padded, on the left or on the right: int32 as `ids`, 1 for the tokens of the text, which stand together,
   * and 0 for padding. They see nothing of it, and count their positions from the first of them. Not with `starts`.
   */
  attentionMask?: Tensor;
}
const wholeTextOptions = optionTable<WholeTextOptions>({
  starts: aTensor,
  tokenTypeIds: aTensor,
  attentionMask: aTensor,
});

/** Options of `embed`. */
export interface EmbedOptions {
  /** Default: what the checkpoint says (sentence-transformers' 1_Pooling/config.json), else "mean". */
  pooling?: Pooling;
  /** Whether vectors have length 1, so that their products are cosines. Default: what the checkpoint says, else false. */
  normalize?: boolean;
  /** Longer texts lose their end. Default: what the checkpoint says, else all that the model has positions for. */
  maxLength?: number;
}
const embedOptions = optionTable<EmbedOptions>({
  pooling: oneOf(poolings),
  normalize: aBoolean,
  maxLength: anInteger(2),
});
const someTexts = either(aString, arrayOf(aString, "an array of texts"));

/** A model that turns tokens into hidden states, each of which has seen the whole text. */
export abstract class Encoder<C extends EncoderConfig = EncoderConfig> extends TextModel<C> {
  /** What `embed` does unless told otherwise. */
  embedDefaults: EmbedOptions = {};

  /** The table that makes hidden states of ids. */
  protected abstract inputEmbedding(): Embedding;

  override get device(): Device {
    return this.inputEmbedding().weight.device;
  }

  /** What its activations are. */
  get dtype(): DType {
    return this.inputEmbedding().weight.dtype;
  }

  /** Hidden states with the leading axes of `pass.ids`. */
  protected abstract hidden(pass: Pass, tokenTypeIds: Tensor | null): Tensor;

  /** Hidden states [batch, t, hidden] of ids [batch, t] int32, with gradients. */
  forward(ids: Tensor, options: WholeTextOptions = {}): Tensor {
    checkWholeTexts(this.constructor.name, ids, options);
    const { attentionMask, tokenTypeIds = null } = options;
    const packed = attentionMask ? packRows(ids, attentionMask) : { ids, starts: options.starts };
    using pass = new TrainingPass(packed.ids, { starts: packed.starts, causal: false });
    const states = this.hidden(pass, tokenTypeIds && reshape(tokenTypeIds, packed.ids.shape));
    const own = states.device === ids.device ? states : to(states, ids.device);
    return attentionMask ? reshape(own, [...ids.shape, -1]) : own;
  }

  /**
   * A vector for each text, float32 [texts, hidden]; one text is a list of one. Texts are tokenized off the event loop and
   * computed together, without padding.
   *
   * @example
   * const model = await AutoModel.fromPretrained("BAAI/bge-small-en-v1.5");
   * const vectors = await model.embed(["a cat", "a dog"], { normalize: true });
   * const cosines = matmul(vectors, vectors, { transposeB: true }); // [2, 2]
   */
  async embed(texts: string | readonly string[], options: EmbedOptions = {}): Promise<Tensor> {
    checkArgument("embed", "texts", texts, someTexts);
    checkOptions("embed", options, embedOptions);
    const { pooling = "mean", normalize = false, maxLength = Infinity } = { ...this.embedDefaults, ...options };
    const most = Math.min(maxLength, this.config.maxPositionEmbeddings);
    const list = typeof texts === "string" ? [texts] : texts;
    if (list.length === 0) throw new BnbError("ERR_BNB_ARGUMENT", "embed: texts must be at least one, got []");
    const tokenizer = this.tokenizerFor("embed");
    const encoded = await Promise.all(list.map(async (text) => shortened(await tokenizer.encode(text), most)));
    refuseEmpty("embed", encoded);
    const vectors = (batch: Int32Array[]): Tensor => {
      const { ids, starts, bounds } = packTexts(batch, this.device);
      return pool(this.forward(ids, { starts }), bounds, pooling, normalize);
    };
    return noGrad(() =>
      tidy(() => {
        const parts = inBatches(encoded).map((batch) => tidy(() => vectors(batch)));
        return parts.length === 1 ? (parts[0] as Tensor) : concat(parts, 0);
      }),
    );
  }
}

/** @internal Throws where ids or options do not fit a forward over whole texts. */
export function checkWholeTexts(op: string, ids: Tensor, options: WholeTextOptions): void {
  checkTensor(op, "ids", ids);
  checkOptions(`${op}.forward`, options, wholeTextOptions);
  if (ids.ndim !== 2) {
    throw new BnbError("ERR_BNB_SHAPE", `${op}: ids must be [batch, length], got [${ids.shape.join(", ")}]`);
  }
  for (const name of ["tokenTypeIds", "attentionMask"] as const) {
    const own = options[name];
    if (!own || own.shape.join() === ids.shape.join()) continue;
    const shapes = `[${ids.shape.join(", ")}] and [${own.shape.join(", ")}]`;
    throw new BnbError("ERR_BNB_SHAPE", `${op}: ${name} must have the shape of ids, got ${shapes}`);
  }
  if (!options.attentionMask) return;
  if (options.starts) throw new BnbError("ERR_BNB_OPTION", `${op}: attentionMask must come without starts, got both`);
  const { dtype } = options.attentionMask;
  if (dtype !== "int32") throw new BnbError("ERR_BNB_DTYPE", `${op}: attentionMask must be int32, got ${dtype}`);
}
