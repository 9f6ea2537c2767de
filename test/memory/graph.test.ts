// Graphs: what is recorded runs on replay and only then, on memory that nothing else gets.
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  add,
  capture,
  copyInto,
  emptyCache,
  expertsSwiglu,
  expertWeights,
  full,
  linear4bit,
  memory,
  mul,
  ones,
  quantize4bit,
  randn,
  silu,
  sum,
  synchronize,
  tensor,
  tidy,
} from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";
import { normals } from "../helpers/random.js";

describe.each(testDevices())("graph on %s", (device) => {
  const make = (values: number[]) => tensor(values, { device });

  it("replays what was recorded on new inputs, and runs nothing before", async () => {
    const x = make([1, 2, 3]);
    const graph = capture(() => ({ y: add(mul(x, x), 1), total: sum(x) }), { device });
    graph.replay();
    expect([...(await graph.outputs.y.data())]).toEqual([2, 5, 10]);
    copyInto(x, make([10, 20, 30]));
    expect([...(await graph.outputs.y.data())]).toEqual([2, 5, 10]);
    graph.replay();
    expect([...(await graph.outputs.y.data())]).toEqual([101, 401, 901]);
    expect(await graph.outputs.total.item()).toBe(60);
    graph.dispose();
    expect(() => graph.replay()).toThrow("graph: the graph was disposed");
    await expect(graph.outputs.y.data()).rejects.toThrow("disposed");
    x.dispose();
  });

  it("changes state that lives outside of it", async () => {
    const counter = make([0]);
    const graph = capture(() => copyInto(counter, add(counter, 1)), { device });
    for (let i = 0; i < 5; i++) graph.replay();
    expect(await counter.item()).toBe(5);
    graph.dispose();
  });

  // The table of the experts is written once, when it is made; blocks of its size are written at each replay.
  it.each(["before", "after"])("keeps what is uploaded while it records apart from what it writes %s", (when) => {
    tidy(() => {
      const drawn = (rows: number, seed: number) =>
        tensor(normals(8 * rows, seed), { shape: [rows, 8], dtype: "float32", device });
      const [gates, ups, downs] = [[drawn(8, 1)], [drawn(8, 2)], [drawn(8, 3)]];
      const x = drawn(2, 4);
      const choice = {
        shares: make([1, 1]).reshape([2, 1]),
        experts: tensor([[0], [0]], { dtype: "int32", device }),
      };
      const expected = expertsSwiglu(x, choice, expertWeights(gates, ups, downs)).floatsSync();
      const others = Array.from({ length: 16 }, (_, i) => full([16 + 8 * i], i, { device }));
      const written = () => others.map((other) => add(other, 1));
      const graph = capture(
        () => {
          if (when === "before") for (const one of written()) one.dispose();
          const weights = expertWeights(gates, ups, downs);
          const y = expertsSwiglu(x, choice, weights);
          if (when === "before") return { y, others: [] };
          weights.dispose();
          return { y, others: written() };
        },
        { device },
      );
      for (let replays = 0; replays < 3; replays++) {
        graph.replay();
        expect(graph.outputs.y.floatsSync()).toEqual(expected);
        for (const [i, other] of graph.outputs.others.entries())
          expect(new Set(other.floatsSync())).toEqual(new Set([i + 1]));
      }
      graph.dispose();
    });
  });

  it("keeps its memory apart from that of tensors made later", async () => {
    const x = make([1, 2, 3, 4]);
    const graph = capture(() => silu(add(mul(x, 2), 1)), { device });
    const others = Array.from({ length: 20 }, (_, i) => make([i, i, i, i]));
    graph.replay();
    for (const [i, other] of others.entries()) expect([...(await other.data())]).toEqual([i, i, i, i]);
    graph.dispose();
    await synchronize();
  });

  it("gives back all it held", async () => {
    await expect(() => {
      const x = make([1, 2, 3]);
      const graph = capture(() => tidy(() => add(mul(x, 2), 1)), { device });
      graph.replay();
      const held = memory().liveBytes;
      graph.dispose();
      expect(memory().liveBytes).toBeLessThan(held);
      x.dispose();
    }).toLeakNothing();
  });

  describe("and the tensors from outside that it uses", () => {
    // Tensors of the size of those that were disposed, which would get their memory if it were free.
    const others = (n: number) => Array.from({ length: 4 }, (_, i) => full([n], i, { device }));
    const expectUntouched = async (list: ReturnType<typeof others>) => {
      for (const [i, other] of list.entries()) expect(new Set(await other.data())).toEqual(new Set([i]));
    };

    it("writes to no other tensor when the one that it wrote to is gone", async () => {
      const target = make([0, 0, 0, 0]);
      const graph = capture(() => copyInto(target, full([4], 7, { device })), { device });
      target.dispose();
      const later = others(4);
      emptyCache();
      graph.replay();
      await expectUntouched(later);
      graph.dispose();
    });

    it("still reads what it read when that is gone", async () => {
      const x = make([1, 2, 3, 4]);
      const graph = capture(() => mul(x, 10), { device });
      x.dispose();
      const later = others(4);
      emptyCache();
      graph.replay();
      expect([...(await graph.outputs.data())]).toEqual([10, 20, 30, 40]);
      await expectUntouched(later);
      graph.dispose();
    });

    it("still reads a quantized weight and its statistics", async () => {
      const [packed, state] = quantize4bit(randn([64, 64], { device }), { quantType: "nf4", compressStatistics: true });
      const weight = state.quantized(packed);
      const x = randn([1, 64], { device });
      const wanted = await linear4bit(x, weight).data();
      const graph = capture(() => linear4bit(x, weight), { device });
      for (const used of [weight, state, packed, x]) used.dispose();
      const later = [...others(64), ...others(2048)];
      emptyCache();
      graph.replay();
      expect(await graph.outputs.data()).toEqual(wanted);
      await expectUntouched(later.slice(0, 4));
      graph.dispose();
    });

    it("reads what another graph made, after that is gone", async () => {
      const x = make([1, 2, 3, 4]);
      const first = capture(() => add(x, 1), { device });
      const second = capture(() => mul(first.outputs, 2), { device });
      first.replay();
      first.dispose();
      const later = others(4);
      emptyCache();
      second.replay();
      expect([...(await second.outputs.data())]).toEqual([4, 6, 8, 10]);
      await expectUntouched(later);
      second.dispose();
    });

    it("keeps what is disposed while it is recorded", async () => {
      const x = make([1, 2, 3, 4]);
      const graph = capture(
        () => {
          const doubled = mul(x, 2);
          x.dispose();
          return [doubled, full([4], 0, { device }), full([4], 1, { device })];
        },
        { device },
      );
      const later = others(4);
      for (let i = 0; i < 2; i++) {
        graph.replay();
        expect([...(await graph.outputs[0]!.data())]).toEqual([2, 4, 6, 8]);
      }
      await expectUntouched(later);
      graph.dispose();
    });

    it("gives them back with the last graph that uses them", async () => {
      await expect(() => {
        const x = make([1, 2, 3, 4]);
        const first = capture(() => add(x, x), { device });
        const second = capture(() => mul(x, x), { device });
        const live = memory().devices[device]!.liveBytes;
        x.dispose();
        expect(memory().devices[device]!.liveBytes, "x, for the graphs").toBe(live);
        expect([first.hasTensors, second.hasTensors]).toEqual([false, false]);
        first.dispose();
        second.replay();
        second.dispose();
      }).toLeakNothing();
    });

    it("gives back nothing that a tensor still has", async () => {
      const x = make([1, 2, 3, 4]);
      const graph = capture(() => add(x, x), { device });
      graph.replay();
      expect(graph.hasTensors).toBe(true);
      graph.dispose();
      emptyCache();
      const later = others(4);
      expect([...(await x.data())]).toEqual([1, 2, 3, 4]);
      await expectUntouched(later);
    });

    it("lets them go when the recording fails", async () => {
      await expect(() => {
        const x = make([1, 2, 3, 4]);
        const fails = () => {
          add(x, x);
          throw new Error("no more");
        };
        expect(() => capture(fails, { device })).toThrow("no more");
        x.dispose();
      }).toLeakNothing();
    });
  });

  it("refuses what cannot be recorded, and goes on", async () => {
    const x = make([1, 2, 3]);
    const refused = "can't be part of a graph";
    expect(() => capture(() => make([1]), { device })).toThrow(`tensor: ${refused} on ${device}`);
    expect(() => capture(() => x.dataSync(), { device })).toThrow(`data: ${refused}`);
    expect(() => capture(() => capture(() => x, { device }), { device })).toThrow("a recording must end before");
    expect(() => capture(async () => x, { device })).toThrow("must be synchronous");
    expect([...(await add(x, ones([3], { device })).data())]).toEqual([2, 3, 4]);
    x.dispose();
  });
});

// A process of its own, whose garbage nobody else makes. `program` is the body of an async function.
function inProcess(program: string): Record<string, number> {
  const library = join(import.meta.dirname, "..", "..", "dist");
  const text = `
    const B = require(${JSON.stringify(join(library, "index.js"))});
    const { LlamaForCausalLM } = B;
    const { device } = { device: ${JSON.stringify(process.env["BNB_TEST_DEVICE"] ?? "cpu")} };
    const collect = async () => {
      for (let i = 0; i < 5; i++) {
        gc();
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      await B.synchronize();
    };
    const live = () => ({ bytes: B.memory().liveBytes, tensors: B.memory().tensors });
    (async () => { ${program} })().then((result) => console.log(JSON.stringify(result)));`;
  return JSON.parse(execFileSync(process.execPath, ["--expose-gc", "-e", text], { encoding: "utf8" })) as Record<
    string,
    number
  >;
}

describe("what is forgotten", () => {
  it("is collected: graphs with their memory and that of their inputs", () => {
    const { before, most, after, tensors } = inProcess(`
      const x = B.ones([64 * 1024], { device });
      const before = live();
      let most = 0;
      for (let i = 0; i < 300; i++) {
        B.capture(() => B.mul(B.ones([64 * 1024], { device }), x), { device }).replay();
        most = Math.max(most, live().bytes);
        await new Promise((resolve) => setImmediate(resolve));
      }
      await collect();
      const after = live();
      return { before: before.bytes, most, after: after.bytes, tensors: after.tensors - before.tensors };`);
    expect(after).toBe(before);
    expect(tensors).toBe(0);
    // All of them would hold 150 MB.
    expect(most).toBeLessThan(100 * 2 ** 20);
  });

  it("is collected: generations left between two tokens", () => {
    const { before, after, tensors } = inProcess(`
      const model = new LlamaForCausalLM({ vocabSize: 29, hiddenSize: 32, intermediateSize: 48, numHiddenLayers: 1,
        numAttentionHeads: 2, numKeyValueHeads: 1, maxPositionEmbeddings: 64 }, { device }).eval();
      const start = async (graph) => {
        const tokens = model.generate([1, 2, 3], { graph });
        for (let i = 0; i < 4; i++) await tokens.next();
      };
      for await (const _ of model.generate([1], { maxNewTokens: 1 }));
      await collect();
      const before = live();
      for (let i = 0; i < 20; i++) await start(i % 2 === 0);
      await collect();
      const after = live();
      return { before: before.bytes, after: after.bytes, tensors: after.tensors - before.tensors };`);
    expect(after).toBe(before);
    expect(tensors).toBe(0);
  });
});
