// npm run test:asan: builds the addon, and the emulated GPU with it unless BNB_CUDA=off, with AddressSanitizer and
// UndefinedBehaviorSanitizer in build-asan and runs the tests that exercise native code with it: those of ops on the CPU
// and on the emulated GPU, all others on the CPU. Any report ends the test process. Linux with GCC or Clang.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";

const suites = ["test/ops", "test/optim", "test/native", "test/memory", "test/tensor"];
/** Damaged files, whose tensors native code reads. */
suites.push("test/hub/safetensors.test.ts", "test/hub/pickle.test.ts");
/** @type {(command: string, args: string[], env?: NodeJS.ProcessEnv) => void} */
const run = (command, args, env = {}) => {
  const { status } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...env } });
  if (status !== 0) process.exit(status ?? 1);
};

// The kernels of the level that runs; the others are compiled, but not run.
const { isa } = createRequire(import.meta.url)("../../dist/index.js").devices()[0];
const kernels = isa === "avx_vnni" ? "avx2" : isa;
const emulated = process.env.BNB_CUDA !== "off";
const ninja = spawnSync("ninja", ["--version"]).status === 0 ? ["-G", "Ninja"] : [];
run("cmake", [
  "-S",
  ".",
  "-B",
  "build-asan",
  ...ninja,
  "-DBNB_SANITIZE=ON",
  `-DBNB_SANITIZE_ISA=${kernels}`,
  "-DBNB_CUDA=off",
]);
const target = emulated ? "emulated" : "bitsandbytes";
const jobs = process.env.BNB_JOBS ?? String(availableParallelism());
run("cmake", ["--build", "build-asan", "--target", target, "--parallel", jobs]);

/** @type {(name: string) => string} */
const library = (name) =>
  spawnSync(process.env.CXX ?? "c++", [`-print-file-name=${name}`], { encoding: "utf8" }).stdout.trim();
const args = process.argv.slice(2);
const filters = args.some((arg) => !arg.startsWith("-")) ? [] : suites.filter((path) => existsSync(path));
run("node_modules/.bin/vitest", ["run", ...filters, ...args], {
  BNB_BINARY: resolve(`build-asan/${emulated ? "Emulated/bitsandbytes-emulated" : "Release/bitsandbytes"}.node`),
  ...(emulated && { BNB_FAKE_BINARY: resolve("build-asan/Emulated/bitsandbytes-fake.node") }),
  BNB_SANITIZED: "1",
  LD_PRELOAD: [library("libasan.so"), library("libstdc++.so.6")].join(" "),
  // Node itself never frees what lives as long as the process, so leaks cannot be told apart here; the memory tests
  // count tensors instead. handle_segv: Node would take the handler away.
  ASAN_OPTIONS: "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_segv=2",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
});
