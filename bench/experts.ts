// A layer of experts on the CPU, shaped like Qwen3-30B-A3B's with fewer experts, in NF4: a step of one token and a prompt,
// against every expert computing every token, and against the bytes of the chosen experts by the bandwidth of reading.
import type { ExpertWeights, Quantized4Bit, Tensor } from "bitsandbytes-node";
import {
  add,
  chooseExperts,
  devices,
  expertsSwiglu,
  expertWeights,
  linear4bit,
  linear4bitSwiglu,
  mul,
  noGrad,
  quantize4bit,
  randn,
  slice,
  tidy,
} from "bitsandbytes-node";
import type { Result } from "./timing.js";
import { compare, readGigabytes, record } from "./timing.js";

const [hidden, width, count, chosen] = [2048, 768, 32, 8];

interface Mlp {
  gate: Quantized4Bit;
  up: Quantized4Bit;
  down: Quantized4Bit;
}
const matrix = (n: number, k: number): Quantized4Bit => {
  const [packed, state] = quantize4bit(randn([n, k]), { quantType: "nf4", compressStatistics: true });
  return state.quantized(packed);
};
const mlps = Array.from(
  { length: count },
  (): Mlp => ({ gate: matrix(width, hidden), up: matrix(width, hidden), down: matrix(hidden, width) }),
);
const weights: ExpertWeights = expertWeights(
  mlps.map(({ gate }) => gate),
  mlps.map(({ up }) => up),
  mlps.map(({ down }) => down),
);
// 4 bits a weight and a byte of scale for 64.
const bytesOfExpert = 3 * hidden * width * (0.5 + 1 / 64);

/** Every expert for every token: what there is without a choice on the device. */
function dense(x: Tensor): Tensor {
  let y = x;
  mlps.forEach(({ gate, up, down }) => {
    const share = slice(x, 1, 0, 1);
    y = add(y, mul(linear4bit(linear4bitSwiglu(x, gate, up), down), share));
  });
  return y;
}

const bandwidth = 1e9 * (await readGigabytes());
const results: Result[] = [];
for (const tokens of [1, 8, 256]) {
  const x = randn([tokens, hidden]);
  const choice = chooseExperts(randn([tokens, count]), chosen, { normalize: true });
  const used = new Set((await choice.experts.data()) as Int32Array).size;
  const ours = (): unknown => tidy(() => noGrad(() => expertsSwiglu(x, choice, weights, x)));
  const all = (): unknown => tidy(() => noGrad(() => dense(x)));
  const { ours: mine, peer, ratio } = await compare(ours, all, tokens > 8 ? 6 : 20);
  const bytes = used * bytesOfExpert;
  results.push({
    case: `${tokens} tokens, ${chosen} of ${count} experts each, ${used} used`,
    ms: mine,
    denseMs: peer,
    timesFaster: ratio,
    ofBandwidth: bytes / (mine.median / 1000) / bandwidth,
    GFLOPs: (6e-6 * tokens * chosen * hidden * width) / mine.median,
  });
}
record("experts", results, { machine: { readGBs: bandwidth / 1e9, threads: devices()[0]!.processors } });
