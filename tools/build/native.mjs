#!/usr/bin/env node
// Builds build/Release/bitsandbytes.node with CMake, or with node-gyp (CPU kernels only) where CMake is missing.
// BNB_CUDA=on|off|emulate, BNB_CUDA_ARCHS and BNB_JOBS are read from the environment. By default there are CUDA kernels
// where a GPU is; in a package, which is for other machines than this one, always.
import { spawnSync } from "node:child_process";
import { statSync, utimesSync } from "node:fs";
import { availableParallelism } from "node:os";

/** @type {(command: string, args: string[]) => number} */
const run = (command, args) => spawnSync(command, args, { stdio: "inherit" }).status ?? 1;
/** @type {(command: string) => boolean} */
const found = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
const jobs = process.env.BNB_JOBS ?? String(availableParallelism());

function withCMake() {
  const { PREBUILD_PLATFORM: platform, BNB_CUDA: cuda = platform === "linux" ? "on" : "" } = process.env;
  const options = [`--CDBNB_CUDA=${cuda}`, `--CDBNB_CUDA_ARCHS=${process.env.BNB_CUDA_ARCHS ?? ""}`];
  // Configured each time, so that a changed option counts; that takes a second.
  /** @type {(...args: string[]) => number} */
  const cmake = (...args) => run("node_modules/.bin/cmake-js", [...args, "--log-level=warn", ...options]);
  return cmake("configure") || cmake("build", "--parallel", jobs);
}

function withGyp() {
  console.log("cmake was not found: building the CPU kernels with node-gyp");
  const gyp = process.env.npm_config_node_gyp;
  const args = ["rebuild", `--jobs=${jobs}`];
  return gyp ? run(process.execPath, [gyp, ...args]) : run("node-gyp", args);
}

const status = found("cmake") ? withCMake() : withGyp();
if (status !== 0) process.exit(status);
const output = "build/Release/bitsandbytes.node";
// A build that had nothing to link is still newer than every source it looked at.
utimesSync(output, new Date(), new Date());
console.log(`${output}: ${(statSync(output).size / 1e6).toFixed(1)} MB`);
