// Graphs: what is recorded runs on replay and only then, on memory that nothing else gets.
import { describe, expect, it } from "vitest";
import { add, capture, copyInto, memory, mul, ones, silu, sum, synchronize, tensor, tidy } from "../../src/index.js";
import { testDevices } from "../helpers/devices.js";

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
