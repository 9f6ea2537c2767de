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
  const work = (body) => new Promise((resolve, reject) => {
    const worker = new Worker(body, { eval: true });
    worker.on("message", () => { ${end} });
    worker.on("error", reject);
    worker.on("exit", resolve);
  });
  (async () => {
    await work("");
    const counts = [threads()];
    for (let i = 0; i < ${workers}; i++) {
      await work(${JSON.stringify(body)});
      counts.push(threads());
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

  it("computes with the threads that there are", () => {
    const program = `
      const bnb = require(${library});
      process.env.FAIL_THREADS_FROM = "3";
      const x = bnb.ones([512, 512]);
      bnb.matmul(x, x).sum().item().then((sum) => console.log(JSON.stringify(sum)));`;
    expect(run(program, { LD_PRELOAD: preload }).out).toBe(512 ** 3);
  });
});
