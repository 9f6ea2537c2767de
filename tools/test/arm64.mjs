// npm run test:arm64 [-- --shard 1/8] [vitest arguments]: builds the addon for arm64 with a cross compiler, compares what it
// computes with this machine's, and runs the suite with Node.js for arm64 under qemu. The compiler, the emulator and Node.js
// come from Debian and the registry into build-tools, unless they are installed. vitest itself runs here; its workers, and the
// programs that tests start, are emulated. Without arguments, the tests of ops, one shard after the other.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { arm64Compiler, arm64Emulator } from "../build/debian.mjs";
import { node } from "./package/registry.mjs";

const binary = resolve("prebuilds/linux-arm64/bitsandbytes.node");
/** @type {(command: string, args: string[], env?: NodeJS.ProcessEnv) => void} */
function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...env } });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

if (!existsSync(binary)) run(process.execPath, ["tools/build/prebuild.mjs", "linux-arm64"]);
const { sysroot } = await arm64Compiler();
// A program of this machine again.
delete process.env.LD_LIBRARY_PATH;
const emulator = await arm64Emulator();
// It looks for the loader in /lib of a folder: what Debian installs for cross compilers has its lib there.
const emulated = resolve("build-tools/node-arm64");
mkdirSync("build-tools", { recursive: true });
writeFileSync(emulated, `#!/bin/sh\nexec "${emulator}" -L "${sysroot}" "${node(24, "arm64").command}" "$@"\n`);
chmodSync(emulated, 0o755);

const env = { BNB_BINARY: binary, BNB_TEST_NODE: emulated, BNB_CUDA: "off", BNB_THREADS: "2" };
const start = performance.now();
run(process.execPath, [join("tools", "test", "compare.mjs"), emulated], env);
const named = process.argv.slice(2);
const shards = named.length > 0 ? [named] : Array.from({ length: 8 }, (_, i) => ["test/ops", `--shard=${i + 1}/8`]);
for (const shard of shards) run("npx", ["vitest", "run", ...shard], env);
console.log(`arm64, emulated: ${((performance.now() - start) / 60e3).toFixed(1)} min`);
