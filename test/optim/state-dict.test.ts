// State dicts: bitsandbytes' layout and bytes, both ways, and what loading refuses.
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { DType } from "../../src/index.js";
import { fromBytes, memory, Tensor, tensor, zeros } from "../../src/index.js";
import type { Optimizer8bit, OptimizerStateDict } from "../../src/optim/index.js";
import { AdamW8bit, AdEMAMix8bit, Lion8bit, SGD } from "../../src/optim/index.js";
import { testDevices } from "../helpers/devices.js";
import { expectClose } from "../helpers/expect-close.js";
import { gradients, normals } from "../helpers/optimizers.js";
import { fixturePath, readSafetensors } from "../helpers/safetensors.js";

interface Layout {
  param_groups: Record<string, unknown>[];
  state: Record<
    string,
    { step: number } & Record<string, Record<string, { tensor: string; dtype: string; shape: number[] }>>
  >;
}

const nested = "__bnb_optimizer_quant_state__";
const layouts = JSON.parse(readFileSync(fixturePath("optim/state_dict_layout.json"), "utf8")) as Record<string, Layout>;
const inputs = readSafetensors("optim/inputs.safetensors");
const makers: Record<string, (params: Tensor[]) => Optimizer8bit> = {
  "adamw-8bit": (params) => new AdamW8bit(params, { lr: 0.002, weightDecay: 0.02 }),
  "lion-8bit": (params) => new Lion8bit(params, { lr: 0.0003, weightDecay: 0.05 }),
  "ademamix-8bit": (params) => new AdEMAMix8bit(params, { lr: 0.001, weightDecay: 0.02 }),
};

function tensorsIn(dict: OptimizerStateDict): [key: string, t: Tensor][] {
  return Object.entries(dict.state).flatMap(([index, entry]) =>
    Object.entries(entry[nested]!).map(([key, t]): [string, Tensor] => [`state.${index}.${nested}.${key}`, t]),
  );
}

function disposeDict(dict: OptimizerStateDict): void {
  for (const [, t] of tensorsIn(dict)) t.dispose();
}

const bytes = (t: Tensor) => Buffer.from(t.dataSync().buffer).toString("hex");

describe.each(testDevices())("state dicts on %s", (device) => {
  const parameters = () =>
    [0, 1].map((i) => {
      const { values, shape } = inputs.get(`p${i}.init`)!;
      return tensor(values as Float32Array, { shape, device, requiresGrad: true });
    });

  function steps(optimizer: Optimizer8bit, params: Tensor[], from: number, to: number): void {
    for (let step = from; step <= to; step++) {
      params.forEach((p, i) => {
        p.grad?.dispose();
        const grads = inputs.get(`p${i}.grads`)!.values as Float32Array;
        p.grad = tensor(grads.subarray((step - 1) * p.size, step * p.size), { shape: p.shape, device });
      });
      optimizer.step();
    }
  }

  // A dict with the tensors of a recorded one.
  function recorded(name: string): OptimizerStateDict {
    const file = readSafetensors(`optim/state_dict_${name}.safetensors`);
    const { state, param_groups } = structuredClone(layouts[name]!) as unknown as OptimizerStateDict;
    for (const entry of Object.values(state)) {
      for (const [key, value] of Object.entries(entry[nested]!)) {
        const { dtype, shape, bytes } = file.get((value as unknown as { tensor: string }).tensor)!;
        entry[nested]![key] = fromBytes(bytes, { dtype: dtype as DType, shape, device });
      }
    }
    return { state, param_groups };
  }

  describe.each(Object.keys(makers))("%s", (name) => {
    it("has bitsandbytes' layout and, after the same two steps, its values", () => {
      const params = parameters();
      const optimizer = makers[name]!(params);
      steps(optimizer, params, 1, 2);
      const dict = optimizer.stateDict();
      const layout = layouts[name]!;
      expect(dict.param_groups).toEqual(layout.param_groups);
      expect(Object.keys(dict.state)).toEqual(Object.keys(layout.state));
      const file = readSafetensors(`optim/state_dict_${name}.safetensors`);
      const entries = tensorsIn(dict);
      expect(entries.map(([key]) => key).sort()).toEqual([...file.keys()].sort());
      for (const [index, entry] of Object.entries(dict.state)) expect(entry.step).toBe(layout.state[index]!.step);
      for (const [key, t] of entries) {
        const want = file.get(key)!;
        expect([t.dtype, t.shape]).toEqual([want.dtype, want.shape]);
        if (t.dtype === "float32") expectClose(t.floatsSync(), want.values as Float32Array, { atol: 1e-8, rtol: 1e-4 });
      }
      disposeDict(dict);
      optimizer.dispose();
    });

    it("gives back the bytes of a loaded recording", () => {
      const params = parameters();
      const optimizer = makers[name]!(params);
      const given = recorded(name);
      optimizer.loadStateDict(given);
      const dict = optimizer.stateDict();
      expect(dict.param_groups).toEqual(given.param_groups);
      const want = new Map(tensorsIn(given));
      for (const [key, t] of tensorsIn(dict)) expect(bytes(t), key).toBe(bytes(want.get(key)!));
      disposeDict(dict);
      disposeDict(given);
      optimizer.dispose();
    });

    it("goes on exactly where it was saved, also from the flat form of older files", () => {
      const [a, b] = [parameters(), parameters()];
      const optimizers = [a, b].map((params) => makers[name]!(params));
      steps(optimizers[0]!, a, 1, 3);
      steps(optimizers[1]!, b, 1, 2);
      const dict = optimizers[1]!.stateDict();
      const flat: OptimizerStateDict = {
        param_groups: dict.param_groups,
        state: Object.fromEntries(
          Object.entries(dict.state).map(([key, entry]) => [key, { step: entry.step, ...entry[nested]! }]),
        ),
      };
      const resumed = makers[name]!(b);
      resumed.loadStateDict(flat);
      optimizers[1]!.dispose();
      steps(resumed, b, 3, 3);
      expect(a.map(bytes)).toEqual(b.map(bytes));
      disposeDict(dict);
      for (const optimizer of [...optimizers, resumed]) optimizer.dispose();
    });
  });

  it("loading copies: the dict's tensors may go, and memory returns to its start", () => {
    const before = memory();
    const p = tensor(normals(300, 1, 1), { device, requiresGrad: true });
    const optimizer = new AdamW8bit([p], { min8bitSize: 0 });
    p.grad = tensor(gradients(300, 1), { device });
    optimizer.step();
    const dict = optimizer.stateDict();
    optimizer.loadStateDict(dict);
    disposeDict(dict);
    optimizer.step();
    expect(optimizer.stateOf(p)!.step).toBe(2);
    optimizer.dispose();
    p.dispose();
    expect(memory().liveBytes).toBe(before.liveBytes);
  });

  it("the bit width is that of the dict", () => {
    const [p, q] = [1, 2].map((seed) => tensor(normals(300, 1, seed), { device, requiresGrad: true }));
    const first = new AdamW8bit([p!], { min8bitSize: 0 });
    p!.grad = tensor(gradients(300, 1), { device });
    first.step();
    const second = new AdamW8bit([q!]);
    const dict = first.stateDict();
    second.loadStateDict(dict);
    expect(second.stateOf(q!)!.state1.dtype).toBe("uint8");
    disposeDict(dict);
    first.dispose();
    second.dispose();
  });

  describe("refuses", () => {
    const change = (edit: (dict: OptimizerStateDict) => void): (() => void) => {
      const optimizer = makers["adamw-8bit"]!(parameters());
      const dict = recorded("adamw-8bit");
      edit(dict);
      return () => optimizer.loadStateDict(dict);
    };
    const first = (dict: OptimizerStateDict) => dict.state["0"]![nested]!;

    const cases: [what: string, edit: (dict: OptimizerStateDict) => void, message: string | RegExp][] = [
      [
        "another number of groups",
        (d) => d.param_groups.pop(),
        "AdamW8bit.loadStateDict: the dict must have 1 groups, got 0",
      ],
      ["another length of a group", (d) => d.param_groups[0]!.params.pop(), "group 0 must have 2 parameters, got 1"],
      ["a state of no group", (d) => Object.assign(d.state, { 7: d.state["1"] }), "got one for index 7"],
      ["a missing tensor", (d) => delete first(d).absmax2, "state 0 must have absmax2, got undefined"],
      [
        "another shape",
        (d) => Object.assign(first(d), { state1: zeros([65, 63], { dtype: "uint8", device }) }),
        "state1 of state 0 must have shape [65, 64], got [65, 63]",
      ],
      [
        "another length of absmax",
        (d) => Object.assign(first(d), { absmax1: zeros([16], { device }) }),
        "absmax1 of state 0 must have shape [17], got [16]",
      ],
      [
        "another dtype",
        (d) => Object.assign(first(d), { state2: zeros([65, 64], { device }) }),
        "state2 of state 0 must be uint8, got float32",
      ],
      [
        "another map",
        (d) => Object.assign(first(d), { qmap1: zeros([256], { device }) }),
        /qmap1 of state 0 must be the signed dynamic map, got 0 for -0\.99\d+ at 0/,
      ],
      [
        "a step that is no count",
        (d) => Object.assign(d.state["0"]!, { step: 1.5 }),
        "step of state 0 must be an integer",
      ],
      [
        "a negative step",
        (d) => Object.assign(d.state["0"]!, { step: -1 }),
        "step of state 0 must be an integer of at least 0, got -1",
      ],
      ["a parameter's index twice", (d) => d.param_groups[0]!.params.fill(0), "indices must be distinct, got 0 twice"],
      ["options out of range", (d) => Object.assign(d.param_groups[0]!, { lr: -1 }), "AdamW8bit: lr must be a number"],
      [
        "what is no dict",
        (d) => Object.assign(d, { state: undefined }),
        'the dict must have "state" and "param_groups"',
      ],
    ];
    it.each(cases)("%s", (_, edit, message) => {
      expect(change(edit)).toThrow(message);
    });

    it("accepts maps that are a few ulp off", () => {
      const dict = recorded("adamw-8bit");
      const map = first(dict).qmap1!.floatsSync();
      const bits = new Int32Array(map.buffer);
      for (let i = 0; i < 256; i += 3) if (map[i] !== 0) bits[i]! += 3;
      first(dict).qmap1 = tensor(map, { device });
      const optimizer = makers["adamw-8bit"]!(parameters());
      optimizer.loadStateDict(dict);
      optimizer.dispose();
    });
  });

  it("holds nothing for parameters without a step", () => {
    const optimizer = new SGD([zeros([3], { device })], { lr: 0.1, momentum: 0.9 });
    expect(optimizer.stateDict()).toEqual({
      optimizer_name: "momentum",
      state: {},
      param_groups: [{ lr: 0.1, betas: [0.9, 0], eps: 0, weight_decay: 0, params: [0] }],
    });
    expect(tensor([1], { device })).toBeInstanceOf(Tensor);
  });
});
