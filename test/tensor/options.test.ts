// The helper under all options: what it accepts, what it refuses, and the key that it proposes.
import { runInNewContext } from "node:vm";
import { describe, expect, it } from "vitest";
import { tensor } from "../../src/index.js";
import {
  aBoolean,
  aNumberIn,
  anInteger,
  arrayOf,
  aShape,
  aTensor,
  checkArgument,
  oneOf,
  orNull,
  required,
} from "../../src/tensor/checks.js";
import { describe as shown } from "../../src/tensor/describe.js";
import { nearest } from "../../src/tensor/nearest.js";
import { checkOptions, optionTable } from "../../src/tensor/options.js";

interface Example {
  quantType?: "nf4" | "fp4";
  blocksize?: number;
  bias?: boolean;
  absmax?: number[] | null;
}
const table = optionTable<Example>({
  quantType: oneOf(["nf4", "fp4"]),
  blocksize: anInteger(1, 4096),
  bias: aBoolean,
  absmax: orNull(arrayOf(aNumberIn(0))),
});
const check = (given: unknown) => () => checkOptions("op", given, table);

describe("options", () => {
  it("may be left out, empty, from another realm or without a prototype", () => {
    for (const given of [undefined, {}, Object.create(null), runInNewContext("({ bias: true })")]) {
      expect(check(given)).not.toThrow();
    }
    expect(check({ quantType: "nf4", blocksize: 64, bias: false, absmax: null })).not.toThrow();
    expect(check({ quantType: undefined, bias: undefined })).not.toThrow();
  });

  it.each([
    [null, "null"],
    [false, "false"],
    [6, "6"],
    ["nf4", '"nf4"'],
    [[1, 2], "[1, 2]"],
    [new Map([[1, 2]]), "[Map]"],
  ])("must be an object literal, not %s", (given, text) => {
    expect(check(given)).toThrow(`op: options must be an object (of quantType, blocksize, bias, absmax), got ${text}`);
    expect(check(given)).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION" }));
  });

  it("must not have other keys; the message proposes the near one", () => {
    const start = "op: options must be among quantType, blocksize, bias, absmax, got";
    expect(check({ quant_type: "nf4" })).toThrow(`${start} quant_type (did you mean quantType?)`);
    expect(check({ blockSize: 64 })).toThrow(`${start} blockSize (did you mean blocksize?)`);
    expect(check({ byas: true })).toThrow(`${start} byas (did you mean bias?)`);
    expect(check({ colour: true })).toThrow(new RegExp(`${start} colour$`));
    expect(check({ toString: 1 })).toThrow(`${start} toString`);
    expect(check({ colour: undefined })).toThrow(`${start} colour`);
    expect(check({ colour: 1 })).toThrow(expect.objectContaining({ code: "ERR_BNB_OPTION" }));
  });

  it("must have values of their type", () => {
    expect(check({ quantType: "nf5" })).toThrow('op: quantType must be one of nf4, fp4, got "nf5"');
    expect(check({ blocksize: "64" })).toThrow('op: blocksize must be an integer from 1 to 4096, got "64"');
    expect(check({ blocksize: 2.5 })).toThrow("op: blocksize must be an integer from 1 to 4096, got 2.5");
    expect(check({ bias: 0 })).toThrow("op: bias must be true or false, got 0");
    expect(check({ absmax: [1, NaN] })).toThrow(
      "op: absmax must be an array, each a finite number of at least 0 or null, got [1, NaN]",
    );
    expect(check({ absmax: new Array(2) })).toThrow("op: absmax must be"); // holes
    expect(check({ bias: null })).toThrow("op: bias must be true or false, got null");
  });

  it("that are required must be given", () => {
    const strict = optionTable<{ seed: number; device?: string }>({
      seed: required(anInteger(0)),
      device: oneOf(["cpu"]),
    });
    expect(() => checkOptions("op", { seed: 0 }, strict)).not.toThrow();
    expect(() => checkOptions("op", {}, strict)).toThrow("op: seed must be an integer of at least 0, got undefined");
    expect(() => checkOptions("op", undefined, strict)).toThrow("op: options must be an object (of seed, device)");
  });
});

describe("the near key", () => {
  it.each([
    ["lora_alpha", ["r", "loraAlpha"], "loraAlpha"],
    ["max_new_tokens", ["maxNewTokens"], "maxNewTokens"],
    ["dim", ["axis", "keepDims"], "axis"],
    ["keepdim", ["axis", "keepDims"], "keepDims"],
    ["rank", ["r", "loraAlpha"], "r"],
    ["learning_rate", ["lr", "eps"], "lr"],
    ["bnb_4bit_use_double_quant", ["quantType", "compressStatistics"], "compressStatistics"],
    ["weigthDecay", ["weightDecay"], "weightDecay"],
    ["x", ["r", "p"], undefined],
    ["colour", ["bias"], undefined],
    ["constructor", ["bias"], undefined],
  ])("of %s among %s is %s", (given, known, near) => {
    expect(nearest(given, known)).toBe(near);
  });
});

describe("arguments", () => {
  it("are checked alike", () => {
    expect(() => checkArgument("op", "x", 5, aTensor)).toThrow("op: x must be a Tensor, got 5");
    expect(() => checkArgument("op", "x", 5, aTensor)).toThrow(expect.objectContaining({ code: "ERR_BNB_ARGUMENT" }));
    expect(() => checkArgument("op", "shape", [2, -1], aShape)).toThrow(
      expect.objectContaining({
        code: "ERR_BNB_SHAPE",
        message: "op: shape must be an array of integers of at least 0, got [2, -1]",
      }),
    );
  });

  it("are shown on one line of bounded length", () => {
    expect(shown(tensor([1, 2], { device: "cpu" }))).toBe("Tensor(float32 [2], cpu)");
    expect(shown("a".repeat(1000)).length).toBe(80);
    expect(shown({ a: 1, b: { c: 2 } })).toBe("{ a: 1, b: [Object] }");
    expect(shown(Promise.resolve())).toBe("[Promise]");
    const hostile = new Proxy(
      {},
      {
        getPrototypeOf: () => {
          throw new Error("no");
        },
      },
    );
    expect(shown(hostile)).toBe("a object that cannot be shown");
    expect(shown([1, 2, 3, 4, 5, 6, 7, 8, 9])).toBe("[1, 2, 3, 4, 5, 6, ... 3 more items]");
  });
});
