// A tensor on its way into a file that is not written as it lies in memory: it turns, or waits elsewhere until then.
import { noGrad } from "../autograd/no-grad.js";
import { transpose } from "../ops/index.js";
import type { DType } from "../tensor/dtype.js";
import { tidy } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";

/** What brings tensors that wait together; those of one are written together, too. */
export interface WaitingPlace {
  /** What is called at once may read them. */
  bring(): void;
}

export class TensorToWrite {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly nbytes: number;
  readonly place: WaitingPlace | null;
  readonly #stored: Tensor;
  readonly #turns: boolean;

  /** `turns`: a matrix that is written the other way around. */
  constructor(stored: Tensor, { turns = false, place = null }: { turns?: boolean; place?: WaitingPlace | null }) {
    this.dtype = stored.dtype;
    this.shape = turns ? [...stored.shape].reverse() : stored.shape;
    this.nbytes = stored.nbytes;
    this.place = place;
    this.#stored = stored;
    this.#turns = turns;
  }

  async data(): Promise<ArrayBufferView> {
    this.place?.bring();
    if (!this.#turns) return this.#stored.data();
    const turned = noGrad(() => tidy(() => transpose(this.#stored.detach())));
    try {
      return await turned.data();
    } finally {
      turned.dispose();
    }
  }
}
