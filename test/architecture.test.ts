// The structure of the repository, held by reading its files: who may import whom, one place per op and layer,
// short files with a header, one copy of each fact.
import { describe, expect, it } from "vitest";
import { files, filesIn, importsOf, includesOf, kebabCase, read, withoutComments } from "./helpers/sources.js";

const typescript = [".ts", ".mts"];
const cpp = [".cc", ".h", ".cu", ".cuh"];

// Lower numbers know nothing of higher ones. Files directly in src (index.ts, functional.ts) stand above all.
const layers: Record<string, number> = {
  native: 1,
  tensor: 2,
  autograd: 3,
  ops: 4,
  nn: 5,
  optim: 6,
  hub: 6,
  models: 7,
  generation: 8,
  peft: 9,
  train: 10,
  serve: 11,
  cli: 12,
  adapters: 12,
};
const aboveAll = 13;
const folderOf = (path: string) => path.split("/")[1] ?? "";
const isRootFile = (path: string) => path.split("/").length === 2;
const layerOf = (path: string) => (isRootFile(path) ? aboveAll : layers[folderOf(path)]);

describe("TypeScript layers", () => {
  const sources = filesIn("src", ...typescript);

  it("every folder of src has a layer", () => {
    expect(sources.filter((path) => layerOf(path) === undefined)).toEqual([]);
  });

  it("a file imports only from its own folder and from lower layers", () => {
    const wrong: string[] = [];
    for (const path of sources) {
      for (const target of importsOf(path)) {
        if (target.startsWith("..") || target.startsWith("test/")) wrong.push(`${path} -> ${target}`);
        if (!target.startsWith("src/")) continue;
        const sameFolder = isRootFile(path) ? isRootFile(target) : folderOf(path) === folderOf(target);
        if (!sameFolder && !(layerOf(target)! < layerOf(path)!)) wrong.push(`${path} -> ${target}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("no file imports itself through others, not even for types", () => {
    const graph = new Map(sources.map((path) => [path, importsOf(path)] as const));
    const cycles: string[] = [];
    const done = new Set<string>();
    const visit = (path: string, trail: string[]): void => {
      if (trail.includes(path)) cycles.push([...trail.slice(trail.indexOf(path)), path].join(" -> "));
      if (done.has(path) || trail.includes(path)) return;
      for (const next of graph.get(path) ?? []) visit(next, [...trail, path]);
      done.add(path);
    };
    for (const path of sources) visit(path, []);
    expect(cycles).toEqual([]);
  });

  it("only src/native loads the addon; only tensor, autograd, ops and optim call it", () => {
    const loads = sources.filter((path) => /node-gyp-build|\.node["'`]/.test(withoutComments(read(path))));
    expect(loads.filter((path) => folderOf(path) !== "native")).toEqual([]);
    const callers = ["native", "tensor", "autograd", "ops", "optim"];
    const calls = sources.filter((path) => /\baddon\.\w/.test(withoutComments(read(path))));
    expect(calls.filter((path) => !callers.includes(folderOf(path)))).toEqual([]);
  });
});

describe("C++ layers", () => {
  const allowed: Record<string, string[]> = {
    core: ["core"],
    kernels: ["core", "kernels"],
    cpu: ["core", "kernels", "cpu"],
    cuda: ["core", "kernels", "cuda"],
    ops: ["core", "kernels", "ops"],
    napi: ["core", "napi", "ops/ops.h"],
  };
  // core implements what kernels ask of the process.
  const exceptions = new Set(["csrc/core/thread_pool.cc -> cpu/parallel.h"]);

  it("a file includes only its own folder and lower layers", () => {
    const wrong: string[] = [];
    for (const path of filesIn("csrc", ...cpp)) {
      const targets = allowed[folderOf(path)];
      expect(targets, `${path}: csrc/${folderOf(path)} has no layer`).toBeDefined();
      for (const include of includesOf(path).own) {
        const fits = targets!.some((target) => include === target || include.startsWith(`${target}/`));
        if (!fits && !exceptions.has(`${path} -> ${include}`)) wrong.push(`${path} -> ${include}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("what is compiled once per ISA includes nothing that could emit a shared symbol", () => {
    const system = ["cstddef", "cstdint", "immintrin.h", "arm_neon.h"];
    const core = ["dtype", "float16", "integer", "isa", "kernel", "parallel_range", "random"].map(
      (name) => `core/${name}.h`,
    );
    const wrong: string[] = [];
    for (const path of filesIn("csrc/cpu", ".cc", ".h")) {
      const includes = includesOf(path);
      for (const name of includes.system) if (!system.includes(name)) wrong.push(`${path} -> <${name}>`);
      for (const name of includes.own) {
        if (name.startsWith("core/") && !core.includes(name)) wrong.push(`${path} -> ${name}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("only three files call the CUDA runtime, and PTX stands in two", () => {
    const runtime = ["csrc/cuda/device.cc", "csrc/cuda/memory.cc", "csrc/cuda/stream.cc", "csrc/cuda/kernel.cuh"];
    const sources = filesIn("csrc", ...cpp).filter((path) => !/^csrc\/cuda\/(emulation|fake)\//.test(path));
    const calls = sources.filter((path) => /\bcuda[A-Z]\w*\(/.test(withoutComments(read(path))));
    expect(calls.filter((path) => !runtime.includes(path))).toEqual([]);
    const ptx = sources.filter((path) => path.startsWith("csrc/cuda/") && /\basm\b/.test(withoutComments(read(path))));
    expect(ptx.sort()).toEqual(["csrc/cuda/convert.cuh", "csrc/cuda/ptx.cuh"]);
  });
});

describe("files", () => {
  const code = [...cpp, ...typescript, ".mjs", ".cjs", ".js"];
  const sources = files.filter((path) => code.some((ending) => path.endsWith(ending)) && read(path) !== "");

  it("each starts with a comment that says what it is", () => {
    const bare = sources.filter((path) => !/^(#!.*\n)?(\/\/|\/\*)/.test(read(path)));
    expect(bare).toEqual([]);
  });

  it("none is longer than 500 lines", () => {
    expect(sources.filter((path) => read(path).trimEnd().split("\n").length > 500)).toEqual([]);
  });

  it("results of benchmarks name no place of the machine they come from", () => {
    const results = files.filter((path) => path.startsWith("bench/results/"));
    expect(results.length).toBeGreaterThan(5);
    const places = results.filter((path) => /(^|[\s"'(])\/(?!v\d)[\w.-]+\/[\w.-]/m.test(read(path)));
    expect(places).toEqual([]);
  });

  it("what a caller gave is shown by describe, which shows anything: some objects are no strings", () => {
    expect(sources.filter((path) => path.startsWith("src/") && /got \$\{String\(/.test(read(path)))).toEqual([]);
  });

  it("one function makes folders: that of Node does not end in /proc", () => {
    const makers = sources.filter((path) => path.startsWith("src/") && /\bmkdir(Sync)?\(/.test(read(path)));
    expect(makers).toEqual(["src/hub/make-folders.ts"]);
  });

  it("the NF4 codes stand in one place", () => {
    const copies = sources.filter((path) => !path.startsWith("test/") && read(path).includes("0.6961928"));
    expect(copies).toEqual(["csrc/kernels/codebooks.h"]);
  });
});

describe("one op, one place per layer", () => {
  // Contracts whose counterparts carry another name: a family of ops, or one op that needs several contracts.
  const optimizer = { ops: "optimizer.cc", source: "optim/update-rule.ts" };
  const families: Record<string, { ops?: string; source?: string; test?: string }> = {
    optimizer_32bit: { ...optimizer, test: "optim/optimizer-32bit.test.ts" },
    optimizer_8bit: { ...optimizer, test: "optim/optimizer-8bit.test.ts" },
    clip_gradients: { ops: "optimizer.cc", source: "optim/clip.ts", test: "optim/clip.test.ts" },
    copy: { source: "ops/shape.ts", test: "ops/shape.test.ts" },
    random_fill: { source: "ops/random.ts", test: "ops/random.test.ts" },
  };
  const contracts = filesIn("csrc/kernels", ".h").filter((path) => /^BNB_KERNEL\(/m.test(read(path)));
  const hasCuda = filesIn("csrc/cuda/kernels", ".cu").length > 0;
  const opsText = filesIn("csrc/ops", ".cc").map((path) => withoutComments(read(path)));

  it.each(contracts)("%s has its kernel, op, TypeScript function and test", (contract) => {
    const name = contract.slice("csrc/kernels/".length, -".h".length);
    const family = families[name] ?? {};
    const expected = [
      `csrc/ops/${family.ops ?? `${name}.cc`}`,
      `src/${family.source ?? `ops/${kebabCase(name)}.ts`}`,
      `test/${family.test ?? `ops/${kebabCase(name)}.test.ts`}`,
    ];
    expect(expected.filter((path) => !files.includes(path))).toEqual([]);
    const kernelFiles = (folder: string, ending: string) =>
      files.filter((path) => path === `${folder}/${name}${ending}` || path.startsWith(`${folder}/${name}/`));
    expect(kernelFiles("csrc/cpu/kernels", ".cc")).not.toEqual([]);
    if (hasCuda) expect(kernelFiles("csrc/cuda/kernels", ".cu")).not.toEqual([]);
  });

  it("every kernel of a contract is enqueued by an op", () => {
    const kernels = contracts.flatMap((path) => [...read(path).matchAll(/^BNB_KERNEL\((\w+),/gm)].map((m) => m[1]!));
    const unused = kernels.filter((name) => !opsText.some((text) => new RegExp(`kernels::${name}\\b`).test(text)));
    expect(unused).toEqual([]);
  });
});

describe("build and package", () => {
  it("CMake and node-gyp compile the kernels with the same flags", () => {
    const flags = (text: string, pattern: RegExp) =>
      Object.fromEntries([...text.matchAll(pattern)].map((m) => [m[1]!, m[2]!.match(/-[\w=-]+/g) ?? []] as const));
    const cmake = read("CMakeLists.txt").split("if(CMAKE_OSX_ARCHITECTURES)")[0]!;
    const gyp = read("binding.gyp");
    const inCMake = flags(cmake, /set\(BNB_ISA_FLAGS_(\w+) ([^)]*)\)/g);
    const inGyp = flags(gyp, /"isa_flags_(\w+)": \[([^\]]*)\]/g);
    expect(Object.keys(inCMake)).toEqual(["base", "avx2", "avx512"]);
    expect(inGyp).toEqual(inCMake);
    const shared = (text: string, pattern: RegExp) => pattern.exec(text)?.[1]?.match(/-[\w=-]+/g);
    expect(shared(gyp, /"kernel_flags": \[([^\]]*)\]/)).toEqual(shared(cmake, /set\(BNB_KERNEL_FLAGS ([^)]*)\)/));
    expect(shared(gyp, /"warnings": \[([^\]]*)\]/)).toEqual(shared(cmake, /set\(BNB_WARNINGS ([^)]*)\)/));
    // What must never be there: flags that change results or tie the build to one machine.
    expect(`${cmake}${gyp}`).not.toMatch(/ffast-math|march=native|-flto/);
  });

  it("the package runs nothing when it is installed", () => {
    const manifest = JSON.parse(read("package.json")) as Record<string, unknown> & { files: string[] };
    const scripts = Object.keys(manifest["scripts"] as object);
    const automatic = ["preinstall", "install", "postinstall", "preprepare", "prepare", "postprepare"];
    expect(scripts.filter((name) => automatic.includes(name))).toEqual([]);
    expect(manifest["gypfile"]).toBe(false);
    expect(manifest.files).not.toContain("binding.gyp");
  });

  it("the lockfile is complete: it also holds the packages of other platforms, which npm may leave out", () => {
    const lock = JSON.parse(read("package-lock.json")) as { packages: Record<string, Record<string, object>> };
    const needed = Object.values(lock.packages).flatMap((entry) =>
      Object.keys({ ...entry["dependencies"], ...entry["optionalDependencies"] }),
    );
    const present = new Set(Object.keys(lock.packages).map((path) => path.split("node_modules/").at(-1)!));
    expect(needed.filter((name) => !present.has(name))).toEqual([]);
  });

  it("dependencies are pinned, and the lockfile names no registry", () => {
    const manifest = JSON.parse(read("package.json")) as Record<string, Record<string, string>>;
    const versions = Object.entries({ ...manifest["dependencies"], ...manifest["devDependencies"] });
    expect(versions.filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))).toEqual([]);
    expect(read("package-lock.json")).not.toMatch(/"resolved":/);
  });
});
