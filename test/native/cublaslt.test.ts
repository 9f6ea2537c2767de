// cuBLASLt beside the project's kernels, by a stand-in that multiplies on the memory of an emulated GPU: which products
// go to it, that one it refuses does not take the others from it, and where it is found. A process for each case,
// because a process looks for it once.
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { devices } from "../../src/index.js";

const emulated = devices().some((device) => device.name === "emulated GPU");
const dist = join(import.meta.dirname, "..", "..", "dist");

interface Outcome {
  /** What the library was asked to do for each product: its sizes are m n k. */
  asked: Record<string, string[]>;
  /** Largest difference from the CPU, in units of the result's root mean square. */
  errors: Record<string, number>;
  status: string;
}

const program = `
  const bnb = require(${JSON.stringify(join(dist, "index.js"))});
  const { Generator, gpuStatus, linear, linear4bit, noGrad, quantize4bit, randn, to } = bnb;
  const { existsSync, readFileSync } = require("node:fs");
  const file = process.env.FAKE_CUBLASLT_LOG;
  const log = () => (existsSync(file) ? readFileSync(file, "utf8") : "");
  const generator = new Generator(5);
  const make = (...shape) => randn(shape, { dtype: "float16", device: "cpu", generator });
  const asked = {}, errors = {};
  const compare = async (name, tensors, product) => {
    const on = (device) => noGrad(() => product(...tensors.map((t) => to(t, device)), device)).floats();
    const want = await on("cpu"), before = log().length, got = await on("cuda:0");
    const size = Math.sqrt(want.reduce((sum, v) => sum + v * v, 0) / want.length);
    errors[name] = got.reduce((most, v, i) => Math.max(most, Math.abs(v - want[i])), 0) / size;
    // The start and the self-test apart.
    asked[name] = log().slice(before).split("\\n").filter((line) => line !== "" && !/ (64 64 64|0 0 0)$/.test(line));
  };
  const [packed, state] = quantize4bit(make(256, 128), { quantType: "nf4" });
  const quantized = (p, device) => state.to(device).quantized(p);
  const product4 = (x, p, device) => linear4bit(x, quantized(p, device));
  const dense = (x, w) => linear(x, w, null);
  (async () => {
    await compare("4-bit, 400 rows", [make(400, 128), packed], product4);
    await compare("4-bit, 512 rows", [make(512, 128), packed], product4);
    await compare("4-bit, 512 rows with a bias", [make(512, 128), packed, make(256)], (x, p, bias, device) =>
      linear4bit(x, quantized(p, device), bias));
    await compare("4-bit, 512 rows with a residual", [make(512, 128), packed, make(512, 256)], (x, p, rest, device) =>
      linear4bit(x, quantized(p, device), null, rest));
    await compare("refused", [make(512, 136), make(256, 136)], dense);
    await compare("refused again", [make(512, 136), make(256, 136)], dense);
    await compare("other sizes", [make(512, 144), make(256, 144)], dense);
    await compare("the same sizes", [make(512, 144), make(256, 144)], dense);
    await compare("nearly the same rows", [make(500, 144), make(256, 144)], dense);
    console.log(JSON.stringify({ asked, errors, status: gpuStatus().libraries }));
  })();`;

describe.runIf(emulated)("cuBLASLt (needs an emulated GPU: npm run test:emulated)", () => {
  let folder = "";
  let library = "";
  const run = (env: Record<string, string>): Outcome => {
    const log = join(folder, `${Object.values(env).join("").length}-${Math.random()}.log`);
    const output = execFileSync(process.execPath, ["-e", program], {
      encoding: "utf8",
      env: { ...process.env, BNB_EMULATED_CC: "90", FAKE_CUBLASLT_LOG: log, ...env },
    });
    return JSON.parse(output) as Outcome;
  };

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "cublaslt-"));
    library = join(folder, "libfake.so");
    const source = join(import.meta.dirname, "fake-cublaslt.cc");
    execFileSync("c++", [
      "-std=c++20",
      "-O2",
      "-Wall",
      "-Wextra",
      "-Werror",
      "-shared",
      "-fPIC",
      source,
      "-o",
      library,
    ]);
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it("takes the products that the plan gives it, and a refused shape costs only that shape", () => {
    const { asked, errors, status } = run({ BNB_CUBLASLT: library });
    expect(status).toBe("cuBLASLt: version 120900");
    expect(asked).toEqual({
      "4-bit, 400 rows": [],
      "4-bit, 512 rows": ["choose 512 256 128", "multiply 512 256 128"],
      "4-bit, 512 rows with a bias": ["choose 512 256 128", "multiply 512 256 128"],
      "4-bit, 512 rows with a residual": [],
      refused: ["choose 512 256 136"],
      "refused again": [],
      "other sizes": ["choose 512 256 144", "multiply 512 256 144"],
      "the same sizes": ["multiply 512 256 144"],
      "nearly the same rows": ["multiply 500 256 144"],
    });
    // Weights of the 4-bit products are rounded to float16, and so are all results.
    for (const [name, error] of Object.entries(errors)) expect(error, name).toBeLessThan(4e-3);
  });

  it("is found in the environment of Python that is active", () => {
    const packages = join(folder, "venv", "lib", "python3.12", "site-packages", "nvidia", "cublas", "lib");
    mkdirSync(packages, { recursive: true });
    copyFileSync(library, join(packages, "libcublasLt.so.12"));
    const { asked, status } = run({ VIRTUAL_ENV: join(folder, "venv"), BNB_EMULATED_CUBLASLT: "1" });
    expect(status).toBe("cuBLASLt: version 120900");
    expect(asked["4-bit, 512 rows"]).toEqual(["choose 512 256 128", "multiply 512 256 128"]);
  });

  it("is let go of by the thread that ends", () => {
    const log = join(folder, "threads.log");
    const work = `const { Generator, linear, noGrad, randn } = require(${JSON.stringify(join(dist, "index.js"))});
      const make = (...shape) => randn(shape, { dtype: "float16", device: "cuda:0" });
      noGrad(() => linear(make(512, 144), make(256, 144), null)).floats();`;
    const threads = `const { Worker } = require("node:worker_threads");
      const start = (left) => left && new Worker(${JSON.stringify(work)}, { eval: true }).on("exit", () => start(left - 1));
      start(3);`;
    const env = { ...process.env, BNB_EMULATED_CC: "90", FAKE_CUBLASLT_LOG: log, BNB_CUBLASLT: library };
    execFileSync(process.execPath, ["-e", threads], { env });
    const lines = readFileSync(log, "utf8").split("\n");
    const count = (what: string) => lines.filter((line) => line.startsWith(what)).length;
    expect([count("create"), count("destroy"), count("multiply 512 256 144")]).toEqual([3, 3, 3]);
  });

  it("is not used where it is turned off, missing or not that library", () => {
    for (const [wanted, why] of [
      ["0", "turned off by BNB_CUBLASLT=0"],
      [join(folder, "nowhere.so"), `${join(folder, "nowhere.so")} not found`],
    ] as const) {
      const { asked, errors, status } = run({ BNB_CUBLASLT: wanted });
      expect(status).toBe(`cuBLASLt: ${why}`);
      expect(Object.values(asked).flat()).toEqual([]);
      for (const [name, error] of Object.entries(errors)) expect(error, name).toBeLessThan(4e-3);
    }
  });
});
