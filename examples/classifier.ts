// A classifier of points in two spirals: a small MLP and Adam with states of 8 bits, on data that is computed here.
// node build/examples/classifier.js [STEPS]
import type { Tensor } from "bitsandbytes-node";
import { crossEntropy, Generator, manualSeed, nn, noGrad, optim, randn, relu, tensor, tidy } from "bitsandbytes-node";

const steps = Number(process.argv[2] ?? 600);
manualSeed(1);

/** Points of two spirals, and which one each is of. */
function spirals(count: number, seed: number): { points: Tensor; labels: Int32Array } {
  const noise = tidy(() => randn([count, 2], { generator: new Generator(seed) }).floatsSync());
  const labels = Int32Array.from({ length: count }, (_, i) => i % 2);
  const coordinates = Float32Array.from({ length: 2 * count }, (_, at) => {
    const i = at >> 1;
    const turn = (5 * i) / count + 1;
    const angle = turn * 1.5 + Math.PI * (i % 2);
    return (at % 2 === 0 ? Math.cos(angle) : Math.sin(angle)) * (turn / 5) + 0.02 * (noise[at] as number);
  });
  return { points: tensor(coordinates, { shape: [count, 2] }), labels };
}

class Classifier extends nn.Module {
  first = new nn.Linear(2, 128);
  second = new nn.Linear(128, 128); // of 16,384 weights: large enough for states of 8 bits
  last = new nn.Linear(128, 2);

  forward(points: Tensor): Tensor {
    return this.last.forward(relu(this.second.forward(relu(this.first.forward(points)))));
  }
}

const model = new Classifier();
const optimizer = new optim.Adam8bit(model.parameters(), { lr: 5e-3 });
const { points, labels } = spirals(512, 1);
const targets = tensor(labels);
for (let step = 1; step <= steps; step++) {
  const loss = tidy(() => {
    const loss = crossEntropy(model.forward(points), targets);
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  });
  if (step % Math.ceil(steps / 6) === 0) console.log(`step ${step}: loss ${(await loss.item()).toFixed(4)}`);
  loss.dispose();
}

const test = spirals(500, 2);
const guesses = noGrad(() => tidy(() => [...model.forward(test.points).argmax({ axis: 1 }).dataSync()]));
const right = guesses.filter((guess, i) => guess === test.labels[i]).length;
console.log(`${((100 * right) / guesses.length).toFixed(1)} % of new points are classified right`);
