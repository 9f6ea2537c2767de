// What an op finds out while it runs is told at the next read, once; then work counts again.
import { describe, expect, it } from "vitest";
import { add, embedding, rope } from "../../src/ops/index.js";
import { ones, tensor } from "../../src/tensor/create.js";
import type { Tensor } from "../../src/tensor/tensor.js";
import { testDevices } from "../helpers/devices.js";

describe.each(testDevices())("an error of a running op on %s", (device) => {
  const lookUp = (id: number): Tensor => embedding(tensor([id], { dtype: "int32", device }), ones([4, 2], { device }));

  it("is told once, and later work counts", async () => {
    for (const id of [4, 5]) {
      const bad = lookUp(id);
      await expect(bad.data()).rejects.toThrow(`embedding: index ${id} is out of range, it must be in [0, 4)`);
      expect([...(await add(ones([2], { device }), 1).data())]).toEqual([2, 2]);
      expect([...(await lookUp(3).data())]).toEqual([1, 1]);
    }
  });

  it("is the first of several, whatever else failed", async () => {
    lookUp(7);
    const table = ones([4, 1], { device });
    const x = ones([1, 1, 1, 2], { device });
    const later = rope(x, table, table, tensor([9], { dtype: "int32", device }));
    await expect(later.data()).rejects.toThrow("embedding: index 7 is out of range, it must be in [0, 4)");
    expect([...(await lookUp(0).data())]).toEqual([1, 1]);
  });
});
