// Learning-rate schedules against Hugging Face's formulas, written out.
import { describe, expect, it } from "vitest";
import { constantSchedule, cosineSchedule, LambdaLR, linearSchedule } from "../../src/optim/index.js";
import { expectClose } from "../helpers/expect-close.js";

const optimizer = (...rates: number[]) => ({ paramGroups: rates.map((lr) => ({ lr })) });

function factors(make: (o: ReturnType<typeof optimizer>) => LambdaLR, steps: number): number[] {
  const o = optimizer(2);
  const scheduler = make(o);
  return Array.from({ length: steps }, () => {
    const [rate] = scheduler.lastLr;
    scheduler.step();
    return rate! / 2;
  });
}

describe("schedules", () => {
  it("linear", () => {
    const got = factors((o) => linearSchedule(o, { warmupSteps: 2, totalSteps: 6 }), 8);
    expectClose(got, [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0], { atol: 1e-12, rtol: 0 });
  });

  it("cosine", () => {
    const got = factors((o) => cosineSchedule(o, { warmupSteps: 2, totalSteps: 6 }), 8);
    const want = [0, 0.5, 1, 0.5 * (1 + Math.SQRT1_2), 0.5, 0.5 * (1 - Math.SQRT1_2), 0, 0];
    expectClose(got, want, { atol: 1e-12, rtol: 0 });
    const floor = factors((o) => cosineSchedule(o, { totalSteps: 2, minFactor: 0.1 }), 4);
    expectClose(floor, [1, 0.55, 0.1, 0.1], { atol: 1e-12, rtol: 0 });
  });

  it("constant", () => {
    expectClose(
      factors((o) => constantSchedule(o, { warmupSteps: 4 }), 6),
      [0, 0.25, 0.5, 0.75, 1, 1],
    );
    expectClose(
      factors((o) => constantSchedule(o), 2),
      [1, 1],
    );
  });

  it("LambdaLR scales every group from its first rate, and goes on from a state dict", () => {
    const o = optimizer(1, 10);
    const scheduler = new LambdaLR(o, (step) => 0.5 ** step);
    scheduler.step();
    scheduler.step();
    expect(scheduler.lastLr).toEqual([0.25, 2.5]);
    const again = new LambdaLR(optimizer(0.25, 2.5), (step) => 0.5 ** step);
    again.loadStateDict(scheduler.stateDict());
    again.step();
    expect(again.lastLr).toEqual([0.125, 1.25]);
    expect(again.lastStep).toBe(3);
    expect(() => again.loadStateDict({ lastStep: 0, baseRates: [1] })).toThrow(
      "LambdaLR.loadStateDict: the dict must have 2 rates, got 1",
    );
  });

  it("refuses counts that are none", () => {
    expect(() => linearSchedule(optimizer(1), { totalSteps: -1 })).toThrow(
      "linearSchedule: totalSteps must be an integer",
    );
    expect(() => cosineSchedule(optimizer(1), { totalSteps: 5, warmupSteps: 0.5 })).toThrow(
      "cosineSchedule: warmupSteps",
    );
  });
});
