// The files that call the CUDA runtime (csrc/cuda/{device,memory,stream}.cc) on a runtime that is not there
// (csrc/cuda/fake): which calls they make, and what becomes of a process, a device and its memory when one fails. Work
// waits in its stream until somebody waits for it, and kernels are the emulator's, which stops one that touches freed
// memory. Each program has a process of its own; BNB_FAKE_FAIL is read whenever an environment first asks for its GPUs.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const binary = process.env["BNB_FAKE_BINARY"];
const dist = join(import.meta.dirname, "..", "..", "dist");

const nothingLive = { device: 0, host: 0, streams: 0, events: 0, graphs: 0, executables: 0 };

const prelude = `
  const B = require(${JSON.stringify(join(dist, "index.js"))});
  const { Worker } = require("node:worker_threads");
  // What the fake runtime has seen: { calls, failed, contexts, live, complaints }.
  const seen = () => JSON.parse(B.gpuStatus().libraries.replace("cuBLASLt: ", ""));
  const failing = async (run) => {
    try { await run(); return null; } catch (e) { return { code: e.code, message: e.message }; }
  };
  const on = (device, ...values) => B.tensor(values, { device });
  const read = async (t) => [...(await t.data())];
  // Runs code in a worker thread, which has devices of its own; its program is this one's beginning and the code.
  const inWorker = (code) => new Promise((resolve, reject) => {
    let result;
    new Worker(process.env.PRELUDE + "(async () => {" + code + "})().then((r) => require('node:worker_threads').parentPort.postMessage(r));", { eval: true })
      .on("message", (message) => { result = message; })
      .on("error", reject)
      .on("exit", () => resolve(result));
  });
`;

/** Runs the body of an async function and gives what it returns, and what the process printed to stderr. */
function inProcess<T>(program: string, env: Record<string, string> = {}): T {
  const text = `${prelude} (async () => { ${program} })().then(
    (result) => console.log(JSON.stringify({ result })),
    (error) => { console.error(error); process.exitCode = 1; });`;
  const child = spawnSync(process.execPath, ["--expose-gc", "-e", text], {
    encoding: "utf8",
    timeout: 280_000,
    env: { ...process.env, BNB_BINARY: binary, PRELUDE: prelude, ...env },
  });
  expect(`${child.signal ?? child.status}`, child.stderr).toBe("0");
  expect(child.stderr).not.toContain("fake CUDA:");
  return (JSON.parse(child.stdout.split("\n").at(-2) ?? "") as { result: T }).result;
}

interface Failure {
  code: string;
  message: string;
}

describe.runIf(binary !== undefined)("the CUDA runtime's callers", () => {
  describe("when the addon is loaded", () => {
    // The fake runtime reads how many GPUs it has when it is asked for them.
    it.each([
      ["devices()", "B.devices()", 2],
      ["gpuStatus()", "B.gpuStatus()", 2],
      ["a tensor on a GPU", 'on("cuda", 1)', 2],
      ['setDefaultDevice("auto")', 'B.setDefaultDevice("auto")', 2],
      ["work on the CPU", "0", 1],
    ])("ask for no GPU before %s", (_, first, gpus) => {
      const outcome = inProcess<{ values: number[]; held: string[]; names: string[] }>(`
        B.setDefaultDevice("cpu");
        const values = await read(B.mul(on("cpu", 1, 2), 2));
        B.emptyCache();
        await B.synchronize();
        const held = Object.keys(B.memory().devices);
        process.env.BNB_FAKE_DEVICES = "2";
        ${first};
        process.env.BNB_FAKE_DEVICES = "1";
        return { values, held, names: B.devices().map(String) };`);
      expect(outcome).toEqual({ values: [2, 4], held: ["cpu"], names: ["cpu", "cuda:0", "cuda:1"].slice(0, gpus + 1) });
    });

    it("hold GPUs that were found late to the clock of changes", () => {
      const message = inProcess<Failure>(`
        const w = B.tensor([1, 2], { device: "cuda:0", requiresGrad: true }), x = on("cuda:0", 3, 4);
        const y = B.sum(B.mul(w, x));
        B.copyInto(x, on("cuda:0", 5, 6));
        return failing(() => y.backward());`).message;
      expect(message).toMatch(/changed/);
    });

    it("open no GPU before its first use, and then that one alone", () => {
      const { names, contexts, values } = inProcess<{ names: string[]; contexts: number[]; values: number[] }>(`
        const names = B.devices().map(String), contexts = [seen().contexts];
        await B.synchronize();
        B.emptyCache();
        contexts.push(seen().contexts);
        const values = await read(B.mul(on("cuda:1", 1, 2), 2));
        contexts.push(seen().contexts);
        await B.synchronize();
        contexts.push(seen().contexts);
        return { names, contexts, values };`);
      expect(names).toEqual(["cpu", "cuda:0", "cuda:1"]);
      expect(contexts).toEqual([0, 0, 1, 1]);
      expect(values).toEqual([2, 4]);
    });

    it.each([
      [
        "cudaGetDeviceCount:1",
        ["cpu"],
        /^the NVIDIA driver supports CUDA 13.0, this build needs 13.0: update the driver/,
      ],
      ["cudaGetDeviceProperties:1", ["cpu", "cuda:1"], /^GPU 0: fake error 999$/],
      ["cudaGetDeviceProperties:2", ["cpu", "cuda:0"], /^GPU 1: fake error 999$/],
    ])("say why a GPU is missing: %s", (fail, names, message) => {
      const outcome = inProcess<{ names: string[]; missing: string; error: Failure; auto: string }>(
        `const { missing } = B.gpuStatus(), names = B.devices().map(String);
         const gone = ["cuda:0", "cuda:1"].find((name) => !names.includes(name));
         const error = await failing(() => on(gone, 1));
         B.setDefaultDevice("auto");
         return { names, missing, error, auto: String(B.ones([1]).device) };`,
        { BNB_FAKE_FAIL: fail },
      );
      expect(outcome).toMatchObject({ names, missing: expect.stringMatching(message) as string });
      expect(outcome.error).toMatchObject({
        code: "ERR_BNB_CUDA",
        message: expect.stringContaining(outcome.missing) as string,
      });
      expect(outcome.auto).toBe(names[1] ?? "cpu");
    });

    it("find no GPU where there is none", () => {
      const missing = inProcess(`return B.gpuStatus().missing;`, { BNB_FAKE_DEVICES: "0" });
      expect(missing).toBe("the NVIDIA driver finds no GPU (is it hidden by CUDA_VISIBLE_DEVICES?)");
    });
  });

  describe("when a GPU is opened", () => {
    it.each([
      ["cudaSetDevice:1", "cudaSetDevice: fake error 2"],
      ["cudaFuncGetAttributes:1", "this build has no code for the GPU's architecture (rebuild with BNB_CUDA_ARCHS)"],
      ["cudaHostAlloc:1", "cudaHostAlloc: fake error 2"],
      ["cudaHostAlloc:2", "cudaHostAlloc: fake error 2"],
      ["cudaStreamCreateWithFlags:1", "cudaStreamCreateWithFlags: fake error 999"],
      ["cudaEventCreateWithFlags:1", "cudaEventCreateWithFlags: fake error 999"],
      ["cudaEventCreateWithFlags:2", "cudaEventCreateWithFlags: fake error 999"],
      ["cudaMalloc:1", "cudaMalloc: fake error 2"],
      ["cudaMemsetAsync:1", "cudaMemsetAsync: fake error 999"],
      ["cudaSetDevice:2", "cudaSetDevice: fake error 2"], // the worker's
    ])("explain that it cannot be, leave nothing, and try again: %s", (fail, why) => {
      const outcome = inProcess<Record<string, unknown>>(
        `const error = await failing(() => on("cuda:0", 1));
         const { missing } = B.gpuStatus(), { live } = seen();
         const values = await read(B.add(on("cuda:0", 1), 1));
         return { error, missing, live, values, later: B.gpuStatus().missing };`,
        { BNB_FAKE_FAIL: fail },
      );
      expect(outcome).toEqual({
        error: { code: "ERR_BNB_CUDA", message: `cuda:0: the GPU cannot be used: fake GPU 0: ${why}` },
        missing: `fake GPU 0: ${why}`,
        live: nothingLive,
        values: [2],
        later: "",
      });
    });

    it("take the next GPU for auto, and the CPU when none can be", () => {
      const run = `
        B.setDefaultDevice("auto");
        return { device: String(B.ones([2]).device), missing: B.gpuStatus().missing,
          explicit: (await failing(() => B.setDefaultDevice("cuda:0")))?.code ?? null };`;
      expect(inProcess(run, { BNB_FAKE_FAIL: "cudaStreamCreateWithFlags:1" })).toEqual({
        device: "cuda:1",
        missing: "fake GPU 0: cudaStreamCreateWithFlags: fake error 999",
        explicit: null,
      });
      const reason =
        "cudaStreamCreateWithFlags: fake error 700 (a kernel stopped with a fault; the process must restart to use the GPU again)";
      expect(inProcess(run, { BNB_FAKE_FAIL: "cudaStreamCreateWithFlags:1+" })).toEqual({
        device: "cpu",
        missing: `fake GPU 0: ${reason}; fake GPU 1: ${reason}`,
        explicit: "ERR_BNB_CUDA",
      });
    });
  });

  describe("in use", () => {
    it("compute on two devices and copy between them", () => {
      const outcome = inProcess<Record<string, unknown>>(`
        const x = on("cuda:0", 1, 2, 3), y = on("cuda:1", 10, 20, 30);
        const [a, b] = [B.add(x, x), B.mul(y, y)];
        const moved = B.add(B.to(a, "cuda:1"), b);
        const home = B.to(moved, "cpu");
        const large = new Uint8Array(9 << 20).map((_, i) => i % 251);
        const back = await B.tensor(large, { dtype: "uint8", device: "cuda:1" }).data();
        return { a: await read(a), b: await read(b), home: await read(home), same: Buffer.compare(large, back),
          contexts: seen().contexts };`);
      expect(outcome).toEqual({ a: [2, 4, 6], b: [100, 400, 900], home: [102, 404, 906], same: 0, contexts: 2 });
    });

    it("serve two environments, one of which ends while the other works", () => {
      const outcome = inProcess<Record<string, unknown>>(`
        const x = on("cuda:0", 1, 2, 3);
        const before = seen().live;
        const theirs = await inWorker("const x = on('cuda:0', 4, 5); B.capture(() => B.mul(x, x), { device: 'cuda:0' }).replay(); return read(B.mul(x, x));");
        const same = JSON.stringify(seen().live) === JSON.stringify(before);
        return { theirs, ours: await read(B.add(x, x)), same };`);
      expect(outcome).toEqual({ theirs: [16, 25], ours: [2, 4, 6], same: true });
    });

    it("give no cached block back before the memory is used up", () => {
      const outcome = inProcess<Record<string, unknown>>(`
        const bytes = (mb) => B.empty([mb * 2 ** 20], { dtype: "uint8", device: "cuda:0" });
        const cached = () => B.memory().cachedBytes / 2 ** 20;
        const blocks = Array.from({ length: 6 }, () => bytes(128));
        const kept = on("cuda:0", 1, 2, 3);
        for (const block of blocks) block.dispose();
        const full = cached();
        const large = bytes(500);
        return { full, later: cached(), kept: await read(kept) };`);
      expect(outcome).toEqual({ full: 768, later: 0, kept: [1, 2, 3] });
    });

    it("leave room for scratch memory as long as the cache has some to give", () => {
      const outcome = inProcess<Record<string, unknown>>(`
        const bytes = (mb) => B.empty([mb * 2 ** 20], { dtype: "uint8", device: "cuda:0" });
        bytes(512).dispose();
        const large = bytes(480);
        const cached = B.memory().cachedBytes;
        return { cached, sum: await B.sum(B.ones([50000], { device: "cuda:0" })).item() };`);
      expect(outcome).toEqual({ cached: 0, sum: 50000 });
    });

    it("survive each call's failure, once: errors say so, what follows is right, and nothing is left", () => {
      const outcome = inProcess<{ errors: string[]; calls: string[]; wrong: string[] }>(sweep("", 1));
      expect(outcome.wrong).toEqual([]);
      // What an environment, its work and its end call; each has failed.
      for (const call of [
        "cudaGetDeviceCount cudaGetDeviceProperties cudaSetDevice cudaFuncGetAttributes cudaHostAlloc cudaMalloc",
        "cudaStreamCreateWithFlags cudaEventCreateWithFlags cudaMemsetAsync cudaPointerGetAttributes cudaMemcpyAsync",
        "cudaEventRecord cudaEventQuery cudaLaunchKernel cudaStreamSynchronize cudaStreamBeginCapture",
        "cudaStreamEndCapture cudaGraphInstantiate cudaGraphLaunch cudaGraphDestroy cudaGraphExecDestroy cudaFree",
        "cudaEventDestroy cudaFreeHost cudaStreamDestroy",
      ].flatMap((line) => line.split(" "))) {
        expect(outcome.calls).toContain(call);
      }
      expect(new Set(outcome.errors)).toEqual(new Set(["ERR_BNB_CUDA", "ERR_BNB_OOM"]));
    });

    it("survive a GPU that is lost at any call: errors say so, and nothing is left", () => {
      const outcome = inProcess<{ errors: string[]; wrong: string[] }>(sweep("+", 4));
      expect(outcome.wrong).toEqual([]);
      expect(new Set(outcome.errors)).toEqual(new Set(["ERR_BNB_CUDA"]));
    });
  });

  describe("graphs", () => {
    const wait = `const settled = () => B.synchronize("cuda:0");`;

    it("are replayed on the memory of tensors that are gone, and nobody else's", () => {
      const outcome = inProcess(`
        const x = on("cuda:0", 1, 2, 3), target = on("cuda:0", 0, 0, 0);
        const graph = B.capture(() => B.copyInto(target, B.mul(x, 2)), { device: "cuda:0" });
        graph.replay();
        const first = await read(target);
        x.dispose();
        target.dispose();
        B.emptyCache();
        const later = Array.from({ length: 8 }, () => on("cuda:0", 7, 7, 7));
        graph.replay();
        const values = [];
        for (const t of later) values.push(...await read(t));
        graph.dispose();
        B.emptyCache();
        return { first, others: [...new Set(values)] };`);
      expect(outcome).toEqual({ first: [2, 4, 6], others: [7] });
    });

    it("own their scratch memory: a larger op between two replays, and no warm-up", () => {
      const outcome = inProcess(`
        const x = B.ones([50000], { device: "cuda:0" });
        const rows = B.ones([400, 3000], { device: "cuda:0" });
        const graph = B.capture(() => B.sum(x), { device: "cuda:0" });
        const device = () => seen().live.device;
        const before = device();
        graph.replay();
        const values = [await graph.outputs.item()];
        const withScratch = device();
        values.push(await B.sum(B.sum(rows, { axis: 0 })).item());
        graph.replay();
        values.push(await graph.outputs.item());
        const late = device();
        graph.dispose();
        await B.synchronize();
        return { values, own: withScratch - before, executables: seen().live.executables, freed: late - device() };`);
      expect(outcome).toEqual({ values: [50000, 1200000, 50000], own: 1, executables: 0, freed: 1 });
    });

    it.each([
      "cudaStreamBeginCapture:1",
      "cudaStreamEndCapture:1",
      "cudaGraphInstantiate:1",
      "cudaGraphLaunch:1",
      "inside",
    ])("leave nothing when their capture fails, and can be captured again: %s", (fail) => {
      const outcome = inProcess<Record<string, unknown>>(
        `const x = B.ones([50000], { device: "cuda:0" });
         const graph = B.capture(() => { const y = B.mul(x, 2); return [B.sum(y), B.sum(B.mul(y, 2))]; }, { device: "cuda:0" });
         ${wait}
         await settled();
         const before = seen();
         graph.replay();
         const error = await failing(settled);
         const { failed, live } = seen();
         graph.replay();
         const values = [await graph.outputs[0].item(), await graph.outputs[1].item()];
         graph.dispose();
         await settled();
         const after = seen().live;
         return { failed, error, live, values, before: before.live, after };`,
        // The second launch of scratch's first user: ones() has one.
        { BNB_FAKE_FAIL: fail === "inside" ? "cudaLaunchKernel:4" : fail },
      );
      const { live, before, after, values, error, failed } = outcome as Record<string, Record<string, number>>;
      expect(failed).toBe(fail === "inside" ? "cudaLaunchKernel" : fail.split(":")[0]);
      expect(error).toMatchObject({ code: fail.startsWith("cudaGraphInst") ? "ERR_BNB_OOM" : "ERR_BNB_CUDA" });
      if (fail !== "cudaGraphLaunch:1") expect(live).toEqual(before);
      expect(values).toEqual([100000, 200000]);
      expect(after).toEqual(before);
    });

    it("let two generations take turns, from short prompts with long caches", () => {
      const outcome = inProcess<{ eager: number[][]; recorded: number[][]; live: object; before: object }>(`
        const model = new B.LlamaForCausalLM({ vocabSize: 32, hiddenSize: 64, intermediateSize: 64, numHiddenLayers: 1,
          numAttentionHeads: 1, numKeyValueHeads: 1, maxPositionEmbeddings: 2048, initializerRange: 0.4 },
          { device: "cuda:0", dtype: "bfloat16", generator: new B.Generator(3) }).eval();
        const run = async (graph) => {
          const texts = [model.generate([1, 2], { graph, maxNewTokens: 200 }), model.generate([3], { graph, maxNewTokens: 2000 })];
          const made = [[], []];
          for (let i = 0; i < 5; i++)
            for (const at of [0, 1]) made[at].push((await texts[at].next()).value);
          for (const text of texts) await text.return();
          return made;
        };
        const eager = await run(false);
        await B.synchronize();
        B.emptyCache();
        const before = seen().live;
        const recorded = await run(true);
        await B.synchronize();
        B.emptyCache();
        return { eager, recorded, before, live: seen().live };`);
      expect(outcome.recorded).toEqual(outcome.eager);
      expect(outcome.live).toEqual(outcome.before);
    });
  });
});

/**
 * A program that lets each call of an environment fail in turn (every `step`-th), with `suffix` also all after it. The
 * environment works twice: one failure may cost one attempt, the other must be right unless the GPU is lost or missing.
 */
function sweep(suffix: "" | "+", step: number): string {
  const work = `
    const work = async () => {
      const made = [];
      const own = (t) => (made.push(t), t);
      const device = "cuda:0";
      try {
        const x = own(B.ones([30000], { device }));
        const large = own(B.tensor(new Uint8Array(5 << 20).fill(3), { dtype: "uint8", device }));
        const total = own(B.sum(x));
        const twice = own(B.mul(x, 2));
        const graph = own(B.capture(() => B.sum(B.add(twice, x)), { device }));
        graph.replay();
        const other = own(B.to(total, "cuda:1"));
        const bytes = await large.data();
        return [await total.item(), await graph.outputs.item(), bytes[0] + bytes[bytes.length - 1], await other.item()];
      } finally {
        for (const t of made) t.dispose();
        B.emptyCache();
      }
    };
    const attempt = async () => {
      try { return { values: await work() }; }
      catch (e) { return { error: e instanceof B.BnbError ? e.code : String(e && e.stack), message: String(e) }; }
    };
    return [await attempt(), await attempt(), B.gpuStatus().missing];`;
  return `
    const right = JSON.stringify([30000, 90000, 6, 30000]);
    const errors = [], calls = [], wrong = [];
    B.devices(); // or the first look inside would count anew
    for (let n = 1; ; n += ${step}) {
      process.env.BNB_FAKE_FAIL = n + ${JSON.stringify(suffix)};
      const [first, second, missing] = await inWorker(${JSON.stringify(work)});
      const { failed, live, complaints } = seen();
      if (failed === "") break;
      calls.push(failed);
      for (const { error } of [first, second]) if (error) errors.push(error);
      const at = n + " " + failed + ": ";
      for (const [name, { values, error, message }] of Object.entries({ first, second })) {
        if (values && JSON.stringify(values) !== right) wrong.push(at + name + " gave " + JSON.stringify(values));
        if (error && !["ERR_BNB_CUDA", "ERR_BNB_OOM"].includes(error)) wrong.push(at + name + " threw " + error);
      }
      // One failure costs one of the two attempts, unless no GPU was found.
      if (first.error && second.error && missing === "" && ${suffix === ""}) wrong.push(at + "both threw, " + second.message);
      if (Object.values(live).some((count) => count !== 0)) wrong.push(at + "left " + JSON.stringify(live));
      if (complaints > 0) wrong.push(at + complaints + " complaints");
    }
    delete process.env.BNB_FAKE_FAIL;
    return { errors, calls, wrong };`;
}
