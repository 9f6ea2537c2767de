// npm run test:emulated: builds the addon with an emulated GPU and runs the suite with it. Tests of ops run on every device;
// all others have the emulated GPU as their default device. BNB_SIMT_ORDER chooses the order of the GPU's threads: forward,
// reverse or random:<seed>.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";

/** @type {(command: string, args: string[], env?: NodeJS.ProcessEnv) => void} */
const run = (command, args, env = {}) => {
  const { status } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...env } });
  if (status !== 0) process.exit(status ?? 1);
};

if (!existsSync("build/CMakeCache.txt")) run("npm", ["run", "--silent", "build:native"]);
const jobs = process.env.BNB_JOBS ?? String(availableParallelism());
run("cmake", ["--build", "build", "--target", "emulated", "--parallel", jobs]);
run("node_modules/.bin/vitest", ["run", ...process.argv.slice(2)], {
  BNB_BINARY: resolve("build/Emulated/bitsandbytes-emulated.node"),
  BNB_FAKE_BINARY: resolve("build/Emulated/bitsandbytes-fake.node"),
  BNB_TEST_DEVICE: "cuda:0",
});
