// The tables that a model has at hand grow with the texts, and hold the same angles whatever their size.
import { describe, expect, it } from "vitest";
import { RotaryCache } from "../../src/models/parts/rotary-cache.js";
import { TrainingPass } from "../../src/models/pass.js";
import { plainRope } from "../../src/models/rope-scaling.js";
import { RotaryTables } from "../../src/models/rotary.js";
import { zeros } from "../../src/tensor/create.js";
import { memory } from "../../src/tensor/scope.js";

describe("rotary tables", () => {
  const rope = plainRope(10_000, 5000);
  const passOf = (length: number) => new TrainingPass(zeros([1, length], { dtype: "int32", device: "cpu" }));

  it("double as texts become longer, up to what the model allows, and stay for shorter ones", () => {
    const before = memory().tensors;
    const cache = new RotaryCache(8, rope, 5000);
    const rowsOf = (length: number): number => {
      const pass = passOf(length);
      const rows = cache.for(pass).cos.shape[0]!;
      pass.ids.dispose();
      return rows;
    };
    expect([3, 1024, 1025, 2049, 7, 4097, 5000].map(rowsOf)).toEqual([1024, 1024, 2048, 4096, 4096, 5000, 5000]);
    const whole = new RotaryTables(8, 5000, rope);
    const pass = passOf(5000);
    expect(cache.for(pass).sin.floatsSync()).toEqual(whole.sin.floatsSync());
    whole.dispose();
    pass.ids.dispose();
    cache.dispose();
    expect(memory().tensors).toBe(before);
  });

  it("are whole for a step that is recorded", () => {
    const cache = new RotaryCache(8, rope, 5000);
    const pass = passOf(3);
    expect(cache.for({ ...pass, ids: pass.ids, longest: null } as never).cos.shape[0]).toBe(5000);
    expect(cache.for(pass).cos.shape[0]).toBe(5000);
    cache.dispose();
    pass.ids.dispose();
  });
});
