// Attention with linear biases (Press et al., 2022): in the place of positions, the score of a key grows with where it sits, by
// a slope of each head. Keys carry their position, and queries the slope, in further columns, so that any attention computes
// it. A position is two digits to the base 256 and a slope the sum of two numbers: exact also in 16-bit floats.
import { broadcastTo, cast, concat, mul, reshape, slice, sub } from "../../ops/index.js";
import { arange, tensor, zeros } from "../../tensor/create.js";
import { keep, tidy } from "../../tensor/scope.js";
import type { Tensor } from "../../tensor/tensor.js";
import type { Pass } from "../pass.js";

const base = 256;
/** Four are used; a multiple of 8 keeps rows of heads aligned. */
export const alibiColumns = 8;

/** Of one layer. */
export class Alibi {
  readonly #slopes: readonly number[];
  #queries: Tensor | null = null;

  constructor(heads: number) {
    this.#slopes = slopesOf(heads);
  }

  /** softmax((q k^T + slope * position of the key) / sqrt(dim)) v, as `Pass.attend`. */
  attend(pass: Pass, layer: number, q: Tensor, k: Tensor, v: Tensor): Tensor {
    const dim = q.shape.at(-1) as number;
    const last = q.shape.length - 1;
    const wider = (x: Tensor, own: Tensor): Tensor => {
      const shape = [...x.shape.slice(0, -1), alibiColumns];
      return concat([x, broadcastTo(cast(own, x.dtype), shape)], last);
    };
    const none = zeros([alibiColumns], { device: v.device });
    const scores = { scale: 1 / Math.sqrt(dim) };
    const y = pass.attend(layer, wider(q, this.#ofQueries(q)), wider(k, ofKeys(pass)), wider(v, none), null, scores);
    return slice(y, last, 0, dim);
  }

  dispose(): void {
    this.#queries?.dispose();
    this.#queries = null;
  }

  /** [heads, columns] float32. */
  #ofQueries({ device }: Tensor): Tensor {
    if (this.#queries?.device === device) return this.#queries;
    this.dispose();
    const values = new Float32Array(this.#slopes.length * alibiColumns);
    for (const [head, slope] of this.#slopes.entries()) {
      // As many bits as the shortest float has.
      const unit = 2 ** (Math.floor(Math.log2(slope)) - 7);
      const most = Math.round(slope / unit) * unit;
      values.set([base * most, most, base * (slope - most), slope - most], head * alibiColumns);
    }
    this.#queries = keep(tensor(values, { shape: [this.#slopes.length, alibiColumns], device }));
    return this.#queries;
  }
}

/** [tokens, 1, columns] float32. */
function ofKeys({ ids, positions }: Pass): Tensor {
  return tidy(() => {
    const tokens = ids.shape.at(-1) as number;
    const places = cast(positions ?? arange(0, tokens, 1, { device: ids.device }), "float32");
    const high = cast(cast(mul(places, 1 / base), "int32"), "float32");
    const low = sub(places, mul(high, base));
    const column = (x: Tensor): Tensor => reshape(x, [tokens, 1]);
    const rest = zeros([tokens, alibiColumns - 4], { device: ids.device });
    const own = concat([column(high), column(low), column(high), column(low), rest], 1);
    return reshape(own, [tokens, 1, alibiColumns]);
  });
}

/** Powers of one number; of other counts of heads than powers of two every second one of the next goes between. */
function slopesOf(heads: number): number[] {
  const powers = (count: number): number[] => Array.from({ length: count }, (_, i) => 2 ** ((-8 * (i + 1)) / count));
  const count = 2 ** Math.floor(Math.log2(heads));
  const between = powers(2 * count).filter((_, i) => i % 2 === 0);
  return [...powers(count), ...between.slice(0, heads - count)];
}
