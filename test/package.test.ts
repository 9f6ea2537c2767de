// The package as its users see it: what the tarball holds, that import, require and the types agree, and what loading it loads.
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { read, root } from "./helpers/sources.js";

interface Manifest {
  name: string;
  bin: Record<string, string>;
  exports: Record<string, unknown>;
}

const manifest = JSON.parse(read("package.json")) as Manifest;
const entries = Object.keys(manifest.exports)
  .filter((path) => path !== "./package.json")
  .map((path) => manifest.name + path.slice(1));
const nodeIn = (cwd: string, ...args: string[]) => execFileSync(process.execPath, args, { cwd, encoding: "utf8" });
const node = (...args: string[]) => nodeIn(root, ...args);

describe("entry points", () => {
  it.each(entries)("%s is the same library for import and for require", (entry) => {
    const program = `
      import { createRequire } from "node:module";
      import * as imported from "${entry}";
      const required = createRequire(process.cwd() + "/")("${entry}");
      const names = Object.keys(required).filter((name) => name !== "default");
      const missing = names.filter((name) => imported[name] !== required[name]);
      const extra = Object.keys(imported).filter((name) => !(name in required) && name !== "module.exports" && name !== "default");
      console.log(JSON.stringify({ count: names.length, missing, extra }));`;
    const report = JSON.parse(node("--input-type=module", "-e", program)) as { count: number };
    expect(report).toEqual({ count: expect.any(Number), missing: [], extra: [] });
    expect(report.count).toBeGreaterThan(1);
  });

  it("names in ESM are those of the library alone", () => {
    const names = `const names = (path) => import(path).then((m) => Object.keys(m).filter((name) => !/^[A-Za-z]\\w*$/.test(name)))`;
    const program = `${names}; Promise.all(${JSON.stringify(entries)}.map(names)).then((all) => console.log(all.flat().join()))`;
    expect(node("-e", program).trim()).toBe("");
    expect(
      node("-e", `import("${manifest.name}").then((m) => console.log("default" in m, "module.exports" in m))`),
    ).toBe("false false\n");
  });

  it.each([
    { how: "--no-addons", env: {}, reason: "addons are switched off. Start Node.js without --no-addons" },
    { how: "--trace-uncaught", env: { BNB_BINARY: "/nowhere.node" }, reason: "BNB_BINARY must name a file" },
  ])("a failed import can be caught, and says why: $reason", ({ how, env, reason }) => {
    const caught = "(e) => console.log('caught', e.code, e.message)";
    const program = `import("${manifest.name}").then(console.log, ${caught}).then(() => import("${manifest.name}")).catch(${caught})`;
    const output = execFileSync(process.execPath, [how, "-e", program], {
      cwd: root,
      encoding: "utf8",
      env: { ...process.env, ...env },
    });
    expect(output).toMatch(new RegExp(`^caught ERR_BNB_NO_BINARY bitsandbytes-node: .*${reason}.*\ncaught`));
  });

  it("bnb is an executable that explains itself", () => {
    expect(read(manifest.bin["bnb"]!).startsWith("#!/usr/bin/env node\n")).toBe(true);
    expect(node(manifest.bin["bnb"]!, "--help")).toMatch(/bnb/);
  });

  it.each(["--version", "--help", "build --help"])("bnb %s needs no binary", (words) => {
    const output = execFileSync(process.execPath, [join(root, manifest.bin["bnb"]!), ...words.split(" ")], {
      encoding: "utf8",
      env: { ...process.env, BNB_BINARY: "/nowhere.node" },
    });
    expect(output).toMatch(/^(\d+\.\d+\.\d+\n$|Usage: bnb )/);
  });
});

describe("loading", () => {
  /** The files of the package, their bytes, and the modules of Node.js that a program brings into its process. */
  const loaded = (program: string) => {
    const text = `
      const before = new Set(process.moduleLoadList);
      (async () => { ${program} })().then(() => {
        const { readFileSync } = require("node:fs"), { relative, sep } = require("node:path");
        const files = Object.keys(require.cache).map((path) => relative(".", path).split(sep).join("/"));
        const own = files.filter((path) => path.startsWith("dist/")).sort();
        const bytes = own.reduce((sum, path) => sum + readFileSync(path).length, 0);
        const modules = process.moduleLoadList.filter((name) => !before.has(name)).map((name) => name.replace("NativeModule ", ""));
        console.log(JSON.stringify({ own, bytes, modules }));
      });`;
    return JSON.parse(node("-e", text)) as { own: string[]; bytes: number; modules: string[] };
  };
  const core = ["dist/core/code.js", "dist/core/plain.js", "dist/core/runtime.js"];
  // Each takes a millisecond or more, and memory.
  const seldom = ["crypto", "fs/promises", "timers/promises", "worker_threads", "zlib"];

  it.each([
    { program: `require("${manifest.name}")`, files: [...core, "dist/index.js"], most: 3e5 },
    { program: `require("${manifest.name}/nn")`, files: [...core, "dist/nn/index.js"], most: 3e5 },
    {
      program: `require("${manifest.name}").LlamaForCausalLM.prototype.generate.call`,
      files: [...core, "dist/hub/code.js", "dist/index.js", "dist/models/code.js"],
      most: 9e5,
    },
    {
      program: `await import("${manifest.name}")`,
      files: [...core, "dist/hub/code.js", "dist/index.js", "dist/models/code.js"],
      most: 9e5,
    },
  ])("takes what is used, and no module that may never be: $program", ({ program, files, most }) => {
    const { own, bytes, modules } = loaded(program);
    expect(own).toEqual(files);
    expect(bytes).toBeLessThan(most);
    expect(modules.filter((name) => seldom.includes(name))).toEqual([]);
  });

  it("leaves no function around a file of sources: it would be compiled twice", () => {
    for (const layer of ["core", "hub", "models", "serve"])
      expect(read(`dist/${layer}/code.js`)).not.toContain("__esmMin");
  });
});

describe("types", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-types-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it("resolve for ESM and for CommonJS", () => {
    mkdirSync(join(folder, "node_modules"));
    symlinkSync(root, join(folder, "node_modules", manifest.name));
    const lines = entries.map(
      (entry, i) => `import * as m${i} from "${entry}";\nexport const n${i}: object = m${i};\n`,
    );
    for (const ending of ["mts", "cts"]) writeFileSync(join(folder, `consumer.${ending}`), lines.join(""));
    const options = [
      "--strict",
      "--noEmit",
      "--module",
      "nodenext",
      "--target",
      "es2022",
      "--lib",
      "es2022,esnext.disposable",
    ];
    const types = ["--typeRoots", join(root, "node_modules/@types"), "--types", "node"];
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const run = () => nodeIn(folder, tsc, ...options, ...types, "consumer.mts", "consumer.cts");
    try {
      expect(run()).toBe("");
    } catch (error) {
      expect.fail((error as { stdout?: string }).stdout || String(error));
    }
  });
});

describe("tarball", () => {
  const [tarball] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: root, encoding: "utf8" }),
  ) as [{ files: { path: string }[]; size: number }];
  const paths = tarball.files.map((file) => file.path);

  it("holds the library, its types with their sources, and what a build from source needs, and nothing else", () => {
    const top = new Set(paths.map((path) => path.split("/")[0]!));
    const welcome = ["CHANGELOG.md", "CMakeLists.txt", "LICENSE", "README.md", "csrc", "dist", "docs", "package.json"];
    expect([...top].filter((name) => ![...welcome, "prebuilds", "src", "tools"].includes(name))).toEqual([]);
    expect(paths.filter((path) => path.startsWith("tools/"))).toEqual([
      "tools/build/cuda.cmake",
      "tools/build/glibc.mjs",
      "tools/build/native.mjs",
    ]);
    const inPrebuilds = /^prebuilds\/(README\.md|[a-z0-9]+-[a-z0-9]+\/bitsandbytes\.node)$/;
    expect(paths.filter((path) => path.startsWith("prebuilds/") && !inPrebuilds.test(path))).toEqual([]);
    for (const path of ["dist/index.js", "dist/index.mjs", "dist/index.d.ts", "dist/index.d.ts.map", "src/index.ts"]) {
      expect(paths).toContain(path);
    }
    expect(paths).toContain("prebuilds/README.md");
  });

  it("is refused, with a sentence, where its binaries are missing", () => {
    const empty = mkdtempSync(join(tmpdir(), "bnb-prepack-"));
    const { status, stderr } = spawnSync(process.execPath, [join(root, "tools/build/prepack.mjs")], {
      cwd: empty,
      encoding: "utf8",
    });
    rmSync(empty, { recursive: true });
    expect(stderr).toBe(
      "the package lacks prebuilds/linux-x64/bitsandbytes.node, prebuilds/linux-arm64/bitsandbytes.node, dist/index.js: " +
        'run "npm run prebuild" and "npm run build:ts" first\n',
    );
    expect(status).toBe(1);
  });

  it("stays within 50 MB", () => {
    expect(tarball.size).toBeLessThan(50e6);
  });
});
