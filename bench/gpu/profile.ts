// What `run.sh profile` runs under Nsight Compute: each kernel that decides the speed of decoding, prefill and training,
// launched once to warm up and once to be looked at, on data of real sizes.
import { parseArgs } from "node:util";
import type { Tensor } from "bitsandbytes-node";
import {
  backward,
  int8VectorwiseQuant,
  linear4bit,
  matmul8bit,
  noGrad,
  quantize4bit,
  randn,
  setDefaultDevice,
  synchronize,
  tidy,
} from "bitsandbytes-node";
import { AdamW8bit } from "bitsandbytes-node/optim";

const { values: options } = parseArgs({ options: { device: { type: "string", default: "cuda:0" } } });
setDefaultDevice(options.device);

const random = (...shape: number[]): Tensor => randn(shape, { dtype: "bfloat16", std: 0.05 });

function twice(run: () => void): void {
  for (let i = 0; i < 2; i++) tidy(run);
}

function products(n: number, k: number, rows: number[]): void {
  tidy(() => {
    const [packed, state] = noGrad(() => quantize4bit(random(n, k), { quantType: "nf4" }));
    const weight = state.quantized(packed);
    for (const m of rows) {
      const x = random(m, k);
      twice(() => noGrad(() => linear4bit(x, weight)));
    }
    if (rows.some((m) => m > 256)) {
      const [x, dy] = [random(512, k), random(512, n)];
      x.requiresGrad = true;
      twice(() => {
        backward(linear4bit(x, weight), dy);
        x.grad = null;
      });
    }
    weight.dispose();
  });
}

products(4096, 4096, [1, 64]);
products(14336, 4096, [1, 8, 64, 512]);
products(28672, 8192, [1, 8]);

tidy(() => {
  const x = random(14336 * 4096);
  twice(() => noGrad(() => quantize4bit(x, { quantType: "nf4" })));
  const weight = noGrad(() => int8VectorwiseQuant(random(4096, 4096)));
  for (const m of [1, 128, 2048]) {
    const input = random(m, 4096);
    twice(() => noGrad(() => matmul8bit(input, weight.codes, weight.stats, { threshold: 6 })));
  }
  weight.dispose();
});

const p = random(14336 * 4096);
p.requiresGrad = true;
p.grad = random(14336 * 4096);
const optimizer = new AdamW8bit([p], { lr: 1e-3 });
twice(() => optimizer.step());
void synchronize().then(() => process.exit(0));
