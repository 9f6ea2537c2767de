// Threads of the library belong to the environments that use it. Programs in which only worker threads load the addon,
// which Node unloads with the last of them; and a system that gives no threads. Run on the built package.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const library = JSON.stringify(join(import.meta.dirname, "..", "..", "dist", "index.js"));

function run(
  program: string,
  env: Record<string, string> = {},
): { status: number | null; signal: string | null; out: unknown } {
  const child = spawnSync(process.execPath, ["-e", program], {
    encoding: "utf8",
    timeout: 150_000,
    env: { ...process.env, BNB_THREADS: "8", ...env },
  });
  const { status, signal, stdout, stderr } = child;
  expect({ status, signal, stderr }).toEqual({ status: 0, signal: null, stderr: expect.any(String) as string });
  return { status, signal, out: JSON.parse(stdout) as unknown };
}

// Runs one worker after another, none on the main thread, and counts the threads of the process between them.
const oneAfterAnother = (body: string, workers: number, end: string) => `
  const { Worker } = require("node:worker_threads");
  const { readdirSync } = require("node:fs");
  const threads = () => readdirSync("/proc/self/task").length;
  // A thread that was joined may stand there for a moment more.
  const threadsLike = async (first) => {
    for (let i = 0; i < 200 && threads() !== first; i++) await new Promise((resolve) => setTimeout(resolve, 5));
    return threads();
  };
  const work = (body) => new Promise((resolve, reject) => {
    const worker = new Worker(body, { eval: true });
    worker.on("message", () => { ${end} });
    worker.on("error", reject);
    worker.on("exit", resolve);
  });
  (async () => {
    await work("");
    await new Promise((resolve) => setTimeout(resolve, 50));
    const counts = [threads()];
    for (let i = 0; i < ${workers}; i++) {
      await work(${JSON.stringify(body)});
      counts.push(await threadsLike(counts[0]));
    }
    console.log(JSON.stringify(counts));
  })();`;

describe.runIf(process.platform === "linux")("worker threads that alone load the addon", () => {
  it("leave no thread behind when they end", () => {
    const body = `
      const bnb = require(${library});
      const x = bnb.randn([512, 512]);
      bnb.matmul(x, x).sum().item().then((v) => { if (!Number.isFinite(v)) throw new Error("sum " + v); });`;
    const counts = run(oneAfterAnother(body, 30, "")).out as number[];
    expect(counts).toHaveLength(31);
    expect(counts).toEqual(counts.map(() => counts[0]));
  });

  it("leave no thread behind when they are terminated at work", () => {
    const body = `
      const bnb = require(${library});
      const x = bnb.randn([256, 256]);
      (async () => {
        for (let i = 0; ; i++) {
          await bnb.tidy(() => bnb.matmul(x, x).sum()).item();
          if (i === 3) require("node:worker_threads").parentPort.postMessage(0);
        }
      })();`;
    const counts = run(oneAfterAnother(body, 12, "worker.terminate();")).out as number[];
    expect(counts).toHaveLength(13);
    expect(counts).toEqual(counts.map(() => counts[0]));
  });

  it("share the pool with the main thread, which keeps it", () => {
    const program = `
      const { Worker } = require("node:worker_threads");
      const bnb = require(${library});
      const x = bnb.ones([512, 512]);
      const total = () => bnb.tidy(() => bnb.matmul(x, x).sum()).item();
      const body = 'const bnb = require(' + ${JSON.stringify(library)} + '); const x = bnb.ones([512, 512]); bnb.matmul(x, x).sum().item();';
      (async () => {
        const sums = [await total()];
        for (let i = 0; i < 3; i++) {
          await new Promise((resolve) => new Worker(body, { eval: true }).on("exit", resolve));
          sums.push(await total());
        }
        console.log(JSON.stringify(sums));
      })();`;
    expect(run(program).out).toEqual([512 ** 3, 512 ** 3, 512 ** 3, 512 ** 3]);
  });
});

describe.runIf(process.platform === "linux")("setNumThreads", () => {
  it("sets how many threads compute, on every thread of the process, and no result depends on it", () => {
    const program = `
      const { createHash } = require("node:crypto");
      const { Worker } = require("node:worker_threads");
      const bnb = require(${library});
      bnb.manualSeed(1);
      const a = bnb.randn([300, 512]), b = bnb.randn([512, 300]);
      const [packed, state] = bnb.quantize4bit(bnb.randn([301, 512]), { quantType: "nf4" });
      const x = [1, 5, 16, 300].map((rows) => bnb.randn([rows, 512]));
      const hash = () => {
        const results = [bnb.matmul(a, b), ...bnb.quantizeBlockwise(a).slice(0, 1)];
        for (const rows of x)
          for (const activationQuant of ["none", "int16", "int8"])
            results.push(bnb.matmul4bit(rows, packed, state, { activationQuant }));
        const all = createHash("sha256");
        for (const tensor of results) all.update(tensor.dataSync());
        return all.digest("hex");
      };
      (async () => {
        const counts = [bnb.getNumThreads()], hashes = new Set([hash()]);
        for (const count of [1, 3, 16, 2]) {
          bnb.setNumThreads(count);
          counts.push(bnb.devices()[0].processors);
          hashes.add(hash());
        }
        const body = "const bnb = require(" + ${JSON.stringify(library)} + "); bnb.setNumThreads(bnb.getNumThreads() + 5);";
        await new Promise((resolve, reject) => new Worker(body, { eval: true }).on("exit", resolve).on("error", reject));
        counts.push(bnb.getNumThreads());
        let message = "";
        try { bnb.setNumThreads(0); } catch (error) { message = error.message; }
        console.log(JSON.stringify({ counts, hashes: hashes.size, message }));
      })();`;
    expect(run(program).out).toEqual({
      counts: [8, 1, 3, 16, 2, 7],
      hashes: 1,
      message: "setNumThreads: count must be an integer from 1 to 1024, got 0",
    });
  });

  it("leaves those above it without work", () => {
    const program = `
      const { readdirSync, readFileSync } = require("node:fs");
      const bnb = require(${library});
      const ids = () => readdirSync("/proc/self/task");
      (async () => {
        await bnb.synchronize();
        const before = new Set(ids());
        const x = bnb.randn([768, 768]);
        await bnb.tidy(() => bnb.matmul(x, x).sum()).item();
        const pool = ids().filter((id) => !before.has(id));
        // What its threads compute in a second, in ticks of 10 ms.
        const ticks = () => pool.reduce((sum, id) =>
          sum + Number(readFileSync("/proc/self/task/" + id + "/stat", "utf8").split(") ")[1].split(" ")[11]), 0);
        const busy = async () => {
          const start = ticks(), until = Date.now() + 1000;
          while (Date.now() < until) await bnb.tidy(() => bnb.matmul(x, x).sum()).item();
          return ticks() - start;
        };
        const all = await busy();
        bnb.setNumThreads(1);
        const one = await busy();
        bnb.setNumThreads(8);
        console.log(JSON.stringify({ threads: pool.length, all, one, again: await busy() }));
      })();`;
    const { threads, all, one, again } = run(program).out as Record<"threads" | "all" | "one" | "again", number>;
    expect(threads).toBeGreaterThanOrEqual(7);
    expect(one).toBeLessThanOrEqual(1);
    expect(all).toBeGreaterThan(5);
    expect(again).toBeGreaterThan(5);
  });
});

// A pthread_create that fails with EAGAIN from the n-th call on, counted while FAIL_THREADS_FROM is set.
const shim = `
  #define _GNU_SOURCE
  #include <dlfcn.h>
  #include <errno.h>
  #include <pthread.h>
  #include <stdlib.h>
  int pthread_create(pthread_t* thread, const pthread_attr_t* attr, void* (*start)(void*), void* arg) {
    static int calls = 0;
    const char* from = getenv("FAIL_THREADS_FROM");
    if (from && ++calls >= atoi(from)) return EAGAIN;
    int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attr, start, arg);
  }`;

// A sanitizer intercepts the same function.
describe.runIf(process.platform === "linux" && process.env["BNB_SANITIZED"] !== "1")("a system without threads", () => {
  let folder: string;
  let preload: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "bnb-threads-"));
    preload = join(folder, "shim.so");
    writeFileSync(join(folder, "shim.c"), shim);
    execFileSync(process.env["CC"] ?? "cc", ["-shared", "-fPIC", "-o", preload, join(folder, "shim.c"), "-ldl"]);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("gets an error when the addon loads, and may try again", () => {
    const program = `
      process.env.FAIL_THREADS_FROM = "1";
      let first;
      try { require(${library}); } catch ({ name, code, message }) { first = { name, code, message }; }
      delete process.env.FAIL_THREADS_FROM;
      require(${library}).ones([3]).sum().item().then((sum) => console.log(JSON.stringify({ first, sum })));`;
    expect(run(program, { LD_PRELOAD: preload }).out).toEqual({
      first: {
        name: "BnbError",
        code: "ERR_BNB_OOM",
        message: expect.stringMatching(/^cpu: its stream needs a thread, and the system gives none: /) as string,
      },
      sum: 3,
    });
  });

  it.each(["abc", "0", "2x", "-1", "99999999999"])("says that BNB_THREADS=%s is no number of threads", (wanted) => {
    const program = `require(${library}).ones([3]).sum().itemSync()`;
    const env = { ...process.env, BNB_THREADS: wanted };
    const { status, stderr } = spawnSync(process.execPath, ["-e", program], { encoding: "utf8", env });
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(
        `^bitsandbytes-node: BNB_THREADS must be a whole number from 1 to \\d+, got ${wanted}; using \\d+\n$`,
      ),
    ]);
  });

  it("computes with the threads that there are", () => {
    const program = `
      const bnb = require(${library});
      process.env.FAIL_THREADS_FROM = "3";
      const x = bnb.ones([512, 512]);
      bnb.matmul(x, x).sum().item().then((sum) => console.log(JSON.stringify(sum)));`;
    expect(run(program, { LD_PRELOAD: preload }).out).toBe(512 ** 3);
  });
});
