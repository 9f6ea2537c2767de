// npm run test:builds [-- cmake-js node-gyp prebuildify bnb]: each tool that makes a binary does so, for the CPU, from nothing
// but the files that git tracks, or the tarball: cmake-js alone, node-gyp with binding.gyp, prebuildify by npm run prebuild, and
// bnb build in an installed package. What each makes is found by the loader, computes what JavaScript says, and the same bits
// as the first. One after the other, each in a temporary folder that goes when it is done. Nothing is downloaded but what npm
// installs for bnb build.
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { install, pack } from "./package/install.mjs";
import { output, row, rows } from "./package/rows.mjs";

const jobs = process.env.BNB_JOBS ?? String(availableParallelism());
const platform = `${process.platform}-${process.arch}`;
const built = join("build", "Release", "bitsandbytes.node");
const folder = mkdtempSync(join(tmpdir(), "bnb-builds-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

/**
 * The clone as git has it, with its packages and what TypeScript became.
 * @param {string} name
 */
function clone(name) {
  const to = join(folder, name);
  const tracked = execFileSync("git", ["ls-files", "-z"], { encoding: "utf8" }).split("\0").filter(Boolean);
  for (const path of tracked) if (existsSync(path)) cpSync(path, join(to, path));
  symlinkSync(resolve("node_modules"), join(to, "node_modules"));
  cpSync("dist", join(to, "dist"), { recursive: true });
  return to;
}

/**
 * Runs a build in a folder. ccache knows its files again in another one.
 * @type {(cwd: string, command: string, args: string[], env?: NodeJS.ProcessEnv) => void}
 */
const build = (cwd, command, args, env = {}) =>
  void output(command, args, {
    cwd,
    env: { BNB_CUDA: "off", BNB_JOBS: jobs, CCACHE_BASEDIR: cwd, ...env },
    timeout: 3_600_000,
  });

/** Computes with the package whose main file is named, and prints the addon's path and a hash of the results: for `node -e`. */
async function compute() {
  const assert = require("node:assert/strict");
  const { createHash } = require("node:crypto");
  const { functional, tensor } = require(process.argv[1] ?? "");
  const hash = createHash("sha256");
  const [m, k, n] = [37, 61, 45];
  const a = Float32Array.from({ length: m * k }, (_, i) => Math.sin(i * 0.7) * 1.5);
  const b = Float32Array.from({ length: k * n }, (_, i) => Math.cos(i * 0.3));

  const product = await tensor(a, { shape: [m, k] })
    .matmul(tensor(b, { shape: [k, n] }))
    .data();
  hash.update(product);
  for (let i = 0; i < m * n; i++) {
    const [row, column] = [Math.floor(i / n), i % n];
    let sum = 0;
    for (let j = 0; j < k; j++) sum += (a[row * k + j] ?? 0) * (b[j * n + column] ?? 0);
    assert.ok(Math.abs(product[i] - sum) < 1e-4, `matmul: element ${i} must be ${sum}, got ${product[i]}`);
  }

  // Each value in 4 bits is that of the 16 which is nearest, times the greatest magnitude of its 64.
  const nf4 = [0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.723, 1];
  nf4.push(-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911);
  const [packed, state] = functional.quantize4bit(tensor(a, { shape: [m, k] }), { quantType: "nf4", blocksize: 64 });
  const again = await functional.dequantize4bit(packed, { quantState: state }).data();
  hash.update(await packed.data()).update(again);
  a.forEach((value, i) => {
    const block = a.subarray(i - (i % 64), i - (i % 64) + 64);
    const most = block.reduce((found, x) => Math.max(found, Math.abs(x)), 0);
    const near = Math.min(...nf4.map((code) => Math.abs(code * most - value)));
    const code = Math.min(...nf4.map((code) => Math.abs(code - again[i] / most)));
    assert.ok(code < 1e-4, `quantize4bit: element ${i}, ${again[i]}, must be one of 16 values times ${most}`);
    const off = Math.abs(again[i] - value);
    assert.ok(
      off < near + 2e-4,
      `quantize4bit: element ${i}, ${value}, must come back within ${near}, is off by ${off}`,
    );
  });

  /** @type {{ sharedObjects: string[] }} */
  const { sharedObjects } = /** @type {any} */ (process.report.getReport());
  const addons = sharedObjects.filter((path) => path.endsWith(".node"));
  console.log(JSON.stringify({ addons, bits: hash.digest("hex") }));
}

/** @type {string | undefined} */
let expected;

/**
 * The binary of a folder of the package, found by the loader and named by BNB_BINARY, must compute as the others do.
 * @type {(root: string, binary: string) => void}
 */
function check(root, binary) {
  const path = join(root, binary);
  if (!existsSync(path)) throw new Error(`${binary} was not made`);
  // The named one lies where the loader would not look.
  const named = join(root, "elsewhere.node");
  cpSync(path, named);
  for (const [file, env] of /** @type {const} */ ([
    [path, {}],
    [named, { BNB_BINARY: named }],
  ])) {
    const program = `(${compute})().catch((error) => { console.error(error); process.exitCode = 1; });`;
    const text = output(process.execPath, ["-e", program, join(root, "dist/index.js")], { cwd: root, env });
    const { addons, bits } = JSON.parse(text);
    if (addons.join() !== file)
      throw new Error(`${file} must be the addon that is loaded, got ${addons.join(" and ")}`);
    expected ??= bits;
    if (bits !== expected) throw new Error(`${binary} must compute the bits of the first build`);
  }
  rmSync(named);
}

const size = (/** @type {string} */ path) => `${(statSync(path).size / 1e6).toFixed(1)} MB`;

/** npm's own copy of node-gyp, as npm names it to scripts, or beside npm itself; and where this Node.js has its headers. */
const { npm_config_node_gyp: namedGyp } = process.env;
const globals = spawnSync("npm", ["root", "-g"], { encoding: "utf8" }).stdout?.trim() ?? "";
const gyp = namedGyp || join(globals, "npm/node_modules/node-gyp/bin/node-gyp.js");
const headers = dirname(dirname(process.execPath));

/** Why a tool cannot be tried here; empty where it can. */
function missing(/** @type {string} */ name) {
  if (name !== "node-gyp") return "";
  if (!existsSync(gyp)) return "npm has no copy of node-gyp here";
  const own = join(headers, "include/node/node_api.h");
  return existsSync(own) ? "" : `this Node.js has no ${own}, and headers are not downloaded`;
}

const tools = {
  "cmake-js": () => {
    const root = clone("cmake-js");
    build(root, "node_modules/.bin/cmake-js", ["build", "--log-level=warn", "--parallel", jobs, "--CDBNB_CUDA=off"]);
    check(root, built);
    return size(join(root, built));
  },
  "node-gyp": () => {
    const root = clone("node-gyp");
    const hasCcache = !spawnSync("ccache", ["--version"]).error;
    const env = hasCcache ? { CXX: `ccache ${process.env.CXX ?? "g++"}` } : {};
    build(root, process.execPath, [gyp, "rebuild", `--nodedir=${headers}`, `--jobs=${jobs}`], env);
    check(root, built);
    return size(join(root, built));
  },
  prebuildify: () => {
    const root = clone("prebuildify");
    // The clone's own build, which must stay as it is.
    const own = join(root, built);
    mkdirSync(dirname(own), { recursive: true });
    cpSync(built, own, { preserveTimestamps: true });
    const about = () => ({
      hash: createHash("sha256").update(readFileSync(own)).digest("hex"),
      ms: statSync(own).mtimeMs,
    });
    const before = about();
    build(root, process.execPath, ["tools/build/prebuild.mjs", platform]);
    const after = existsSync(own) ? about() : undefined;
    if (after?.hash !== before.hash || after.ms !== before.ms) throw new Error(`${built} of the clone was changed`);
    rmSync(join(root, "build"), { recursive: true });
    const prebuilt = join("prebuilds", platform, "bitsandbytes.node");
    check(root, prebuilt);
    return size(join(root, prebuilt));
  },
  bnb: () => {
    const cwd = install(folder, "bnb", ["npm"], pack(folder));
    const root = join(cwd, "node_modules/bitsandbytes-node");
    // As on a platform without one.
    rmSync(join(root, "prebuilds", platform), { recursive: true, force: true });
    build(root, join(cwd, "node_modules/.bin/bnb"), ["build"]);
    check(root, built);
    return size(join(root, built));
  },
};

const named = process.argv.slice(2);
const unknown = named.find((name) => !(name in tools));
if (unknown) {
  console.error(`test:builds: a tool must be ${Object.keys(tools).join(", ")}, got ${unknown}`);
  process.exit(1);
}
/** @type {string[]} */
const skipped = [];
for (const [name, use] of Object.entries(tools)) {
  if (named.length > 0 && !named.includes(name)) continue;
  const why = missing(name);
  if (why) {
    console.log(`SKIPPED ${name}: ${why}`);
    skipped.push(name);
    continue;
  }
  await row(name, "builds, loads and computes", use);
  rmSync(join(folder, name), { recursive: true, force: true });
}
const failed = rows.filter((tried) => !tried.ok).length;
const untried = skipped.length > 0 ? `; SKIPPED: ${skipped.join(", ")}` : "";
console.log(`builds: ${rows.length - failed} of ${rows.length} tools work${untried}`);
process.exitCode = failed > 0 ? 1 : 0;
