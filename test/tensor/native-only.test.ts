// JSON and structured clones of what lives in native memory fail, with advice, where they would succeed without data.
import { describe, expect, it } from "vitest";
import {
  capture,
  expertWeights,
  Generator,
  KvPages,
  LoraLinear,
  nn,
  noGrad,
  ones,
  optim,
  quantize4bit,
  randn,
  tensor,
} from "../../src/index.js";

const x = tensor([[1, 2]]);
const layer = new nn.Linear(2, 2);
const [packed, state] = quantize4bit(ones([64]));
const things: [name: string, thing: object][] = [
  ["a Tensor", x],
  ["a Parameter", layer.weight],
  ["a Tensor", { some: [new Map([["x", x]])].map((m) => [...m.values()]) }],
  ["a Module", layer],
  ["a Module", new nn.Dropout()],
  ["a Module", new nn.Sequential(layer)],
  ["a Module", new LoraLinear(new nn.Linear(2, 2))],
  ["a state dict", layer.stateDict()],
  ["a Parameter", Object.fromEntries(layer.stateDict())],
  ["a QuantState", state],
  ["a Tensor", state.asDict({ packed: true })],
  ["a Quantized4Bit", state.quantized(packed)],
  ["a ExpertWeights", expertWeights([layer.weight], [layer.weight], [layer.weight])],
  ["a Graph", capture(() => noGrad(() => x.add(1)))],
  ["a KvPages", new KvPages([{ kvHeads: 1, headDim: 1 }], { pages: 1 })],
  ["a Parameter", new optim.Adam([layer.weight]).paramGroups],
];

describe.each(things)("%s", (name, thing) => {
  it("is not written by JSON.stringify", () => {
    expect(() => JSON.stringify(thing)).toThrow(
      expect.objectContaining({
        code: "ERR_BNB_UNSUPPORTED",
        message: expect.stringContaining(`JSON.stringify: ${name} has its elements in native memory; write Array.from`),
      }),
    );
  });

  it("is not cloned, and so not sent to a worker", () => {
    expect(() => structuredClone(thing)).toThrow(
      /elements are in native memory: send await x\.data\(\).* could not be cloned/,
    );
  });
});

it("a Generator is written by its state, and refuses to be cloned without it", async () => {
  const generator = new Generator(5);
  randn([8], { generator });
  expect(JSON.parse(JSON.stringify({ generator }))).toEqual({ generator: { seed: 5, offset: 2 } });
  expect(() => structuredClone(generator)).toThrow("a Generator would arrive empty: send generator.state");
  const there = new Generator();
  there.state = structuredClone(generator.state);
  expect(await randn([3], { generator: there }).data()).toEqual(await randn([3], { generator }).data());
});

it("what is sent instead arrives", async () => {
  const sent = structuredClone({ data: await x.data(), shape: x.shape, dtype: x.dtype });
  const there = tensor(sent.data, { shape: sent.shape, dtype: sent.dtype });
  expect([there.shape, Array.from(await there.data())]).toEqual([
    [1, 2],
    [1, 2],
  ]);
});
