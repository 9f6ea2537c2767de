// Guesses from the text: what they are, and when they stop because they do not pay.
import { describe, expect, it } from "vitest";
import { PromptLookup } from "../../src/generation/prompt-lookup.js";

describe("PromptLookup", () => {
  it("proposes what followed the last tokens before, the latest and the longest agreement first", () => {
    const lookup = new PromptLookup();
    expect(lookup.propose([1, 2, 3, 4], 5)).toEqual([]);
    expect(lookup.propose([1, 2, 3, 4, 2], 5)).toEqual([3, 4, 2]);
    expect(lookup.propose([1, 2, 3, 4, 2, 9, 2], 1)).toEqual([9]);
    // 4 2 was followed by 9, and 2 alone last by 4.
    expect(lookup.propose([1, 2, 3, 4, 2, 9, 2, 4, 2], 3)).toEqual([9, 2, 4]);
    expect(lookup.propose([1, 2, 3, 4, 2, 9, 2, 4, 2], 0)).toEqual([]);
    expect(new PromptLookup().propose([7, 7], 9)).toEqual([7]);
    expect(new PromptLookup().propose([], 9)).toEqual([]);
  });

  it("rests when a step of guesses takes longer than its tokens would one by one, then tries again", () => {
    const lookup = new PromptLookup();
    const ids = [1, 2, 1, 2, 1];
    lookup.report(0, 1, 10);
    lookup.report(3, 4, 30);
    expect(lookup.propose(ids, 4)).not.toEqual([]);
    for (let i = 0; i < 10; i++) lookup.report(3, 1, 30);
    const rests = Array.from({ length: 40 }, () => lookup.propose(ids, 4).length === 0);
    expect(rests.indexOf(false)).toBe(32);
  });

  it("rests without a step to compare with, when no guess comes true", () => {
    const lookup = new PromptLookup();
    lookup.report(3, 1, 10);
    expect(lookup.propose([1, 1], 4)).toEqual([]);
  });
});
