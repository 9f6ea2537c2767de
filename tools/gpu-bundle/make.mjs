// npm run gpu:bundle [-- --emulated]: makes gpu-bundle/, all that a machine with a GPU and without a network needs to
// test and time this project: Node, the addon, the compiled tests with their fixtures, the GPU benchmarks and
// run.sh. BNB_CUDA_ARCHS chooses the architectures (default 90). --emulated takes the addon with the emulated GPU, to
// try the bundle where there is none. See docs/gpu-testing.md.
import { execFileSync, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({ options: { emulated: { type: "boolean", default: false } } });
const limit = 60e6;
const bundle = "gpu-bundle";
const app = join(bundle, "app");
const archs = options.emulated ? "" : (process.env.BNB_CUDA_ARCHS ?? "90").replaceAll(",", ";");

/** @type {(command: string, ...args: string[]) => void} */
function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit" });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

// --- the addon -----------------------------------------------------------------------------------------------------

const build = options.emulated ? "build" : "build-gpu-bundle";
const target = options.emulated ? "emulated" : "bitsandbytes";
// The emulated addon is part of the clone's own build.
if (options.emulated && !existsSync("build/CMakeCache.txt")) run("npm", "run", "--silent", "build:native");
if (!options.emulated) {
  const ninja = spawnSync("ninja", ["--version"]).status === 0 ? ["-G", "Ninja"] : [];
  // -lineinfo lets the sanitizer name source lines; it changes no instruction.
  const cuda = ["-DBNB_CUDA=on", `-DBNB_CUDA_ARCHS=${archs}`, "-DCMAKE_CUDA_FLAGS=-lineinfo"];
  run("cmake", "-S", ".", "-B", build, ...ninja, ...cuda);
}
const jobs = process.env.BNB_JOBS ?? String(availableParallelism());
run("cmake", "--build", build, "--target", target, "--parallel", jobs);

// --- Node, compressed once: that takes a minute ----------------------------------------------------------------------

const nodeArchive = join(bundle, "node.xz");
const nodeNote = join(bundle, "node.txt");
const nodeWanted = `${process.version} ${statSync(process.execPath).size}\n`;
const kept = existsSync(nodeArchive) && existsSync(nodeNote) && readFileSync(nodeNote, "utf8") === nodeWanted;
if (kept) {
  for (const name of readdirSync(bundle)) {
    if (!["node.xz", "node.txt"].includes(name)) rmSync(join(bundle, name), { recursive: true, force: true });
  }
} else {
  rmSync(bundle, { recursive: true, force: true });
  mkdirSync(bundle);
  const plain = join(bundle, "node");
  copyFileSync(process.execPath, plain);
  run("strip", plain);
  run("xz", "-6", "-T0", plain);
  writeFileSync(nodeNote, nodeWanted);
}

// --- the addon, the compiled sources and what they read ----------------------------------------------------------------

mkdirSync(app, { recursive: true });
const addon = join(bundle, "bitsandbytes.node");
run(
  "strip",
  "-o",
  addon,
  options.emulated ? "build/Emulated/bitsandbytes-emulated.node" : `${build}/Release/bitsandbytes.node`,
);
run("xz", "-6", "-T0", addon);
run("node_modules/.bin/tsc", "-p", "tools/gpu-bundle/tsconfig.json");
copyFileSync("package.json", join(app, "package.json"));
copyFileSync("src/package.json", join(app, "src/package.json"));
// What users import; the same JavaScript.
cpSync(join(app, "src"), join(app, "dist"), { recursive: true });
cpSync("test/fixtures", join(app, "test/fixtures"), { recursive: true });
for (const name of readdirSync("bench/gpu").filter((name) => name.endsWith(".py"))) {
  copyFileSync(join("bench/gpu", name), join(app, "bench/gpu", name));
}
copyFileSync("tools/gpu-bundle/tests.mjs", join(app, "tests.mjs"));
copyFileSync("tools/gpu-bundle/run.sh", join(bundle, "run.sh"));
chmodSync(join(bundle, "run.sh"), 0o755);

// --- packages: those named, what they depend on, and the stand-in for vitest -------------------------------------------

const modules = join(app, "node_modules");
const packages = new Set();
/** @param {string} name */
function take(name) {
  const from = join("node_modules", name);
  if (packages.has(name) || name.startsWith("@types/") || !existsSync(from)) return;
  packages.add(name);
  /** @type {(path: string) => boolean} */
  const filter = (path) => statSync(path).isDirectory() || /\.(js|mjs|cjs|json|d\.ts)$|LICENSE/.test(path);
  cpSync(from, join(modules, name), { recursive: true, filter, dereference: true });
  const manifest = JSON.parse(readFileSync(join(from, "package.json"), "utf8"));
  for (const dependency of Object.keys(manifest.dependencies ?? {})) take(dependency);
}
const { dependencies } = JSON.parse(readFileSync("package.json", "utf8"));
// What tests need beside it; vitest's own are of exactly its version.
for (const name of [...Object.keys(dependencies), "@vitest/runner", "@vitest/expect", "fast-check", "openai"]) {
  take(name);
  if (!packages.has(name)) throw new Error(`node_modules/${name} is missing`);
}
// The demo trains on the text of the installed packages' documentation.
for (const path of readdirSync("node_modules", { recursive: true, encoding: "utf8" })) {
  if (!path.endsWith(".md") || path.startsWith(".")) continue;
  mkdirSync(dirname(join(modules, path)), { recursive: true });
  copyFileSync(join("node_modules", path), join(modules, path));
}
const shim = join(modules, "vitest");
mkdirSync(shim, { recursive: true });
copyFileSync("tools/gpu-bundle/vitest.mjs", join(shim, "index.mjs"));
writeFileSync(join(shim, "package.json"), '{ "name": "vitest", "exports": "./index.mjs" }\n');

// --- what it is -------------------------------------------------------------------------------------------------------

/** @type {(...args: string[]) => string} */
const git = (...args) => execFileSync("git", args, { encoding: "utf8" }).trim();
const changed = git("status", "--porcelain", "--untracked-files=no") === "" ? "" : "+";
run("tar", "-C", bundle, "-cf", join(bundle, "app.tar"), "app");
run("xz", "-6", "-T0", join(bundle, "app.tar"));
rmSync(app, { recursive: true });
const manifest = {
  commit: `${git("rev-parse", "--short", "HEAD")}${changed}`,
  date: new Date().toISOString(),
  node: process.version,
  archs: archs.split(";").filter(Boolean),
  emulated: options.emulated,
};
writeFileSync(join(bundle, "manifest.json"), `${JSON.stringify(manifest, null, 2)}\n`);

/** @type {(path: string) => number} */
const size = (path) =>
  statSync(path).isDirectory()
    ? readdirSync(path).reduce((sum, name) => sum + size(join(path, name)), 0)
    : statSync(path).size;
for (const name of readdirSync(bundle).sort())
  console.log(`  ${(size(join(bundle, name)) / 1e6).toFixed(1)} MB ${name}`);
const total = size(bundle);
const what = options.emulated ? "emulated GPU" : `sm_${manifest.archs.join(" ")}`;
console.log(
  `${bundle}: ${(total / 1e6).toFixed(1)} MB, ${what}, ${manifest.commit}; run it with ${bundle}/run.sh check`,
);
if (total > limit) {
  console.error(`${bundle} is larger than ${limit / 1e6} MB: choose fewer architectures in BNB_CUDA_ARCHS`);
  process.exitCode = 1;
}
