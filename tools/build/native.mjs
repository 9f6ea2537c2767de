#!/usr/bin/env node
// Builds build/Release/bitsandbytes.node with CMake, or with node-gyp (CPU kernels only) where CMake is missing. Below the
// current folder: that of the clone, of an installed package (bnb build), or one that prebuildify builds in.
// BNB_CUDA=on|off, BNB_CUDA_ARCHS and BNB_JOBS are read from the environment. By default there are CUDA kernels
// where a GPU is. BNB_CROSS_PREFIX and BNB_CROSS_COMPILER, of tools/build/prebuild.mjs, are the tools for arm64.
import { spawnSync } from "node:child_process";
import { existsSync, statSync, utimesSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
/** @type {(command: string, args: string[]) => number} */
const run = (command, args) => spawnSync(command, args, { stdio: "inherit" }).status ?? 1;
/** @type {(command: string) => boolean} */
const found = (command) => spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
const jobs = process.env.BNB_JOBS ?? String(availableParallelism());

function withCMake() {
  const { BNB_CUDA: cuda = "", BNB_CUDA_ARCHS: archs = "", BNB_CROSS_PREFIX: prefix } = process.env;
  /** @type {Record<string, string>} */
  const options = { BNB_CUDA: cuda, BNB_CUDA_ARCHS: archs };
  if (prefix && process.env.BNB_CROSS_COMPILER) {
    options.CMAKE_SYSTEM_NAME = "Linux";
    options.CMAKE_SYSTEM_PROCESSOR = "aarch64";
    options.CMAKE_CXX_COMPILER = process.env.BNB_CROSS_COMPILER;
    for (const tool of ["nm", "ar", "ranlib", "strip", "objdump"])
      options[`CMAKE_${tool.toUpperCase()}`] = prefix + tool;
  }
  const defined = Object.entries(options).map(([name, value]) => `D${name}=${value}`);
  const cmakeJs = join(root, "node_modules/.bin/cmake-js");
  // Configured each time, so that a changed option counts; that takes a second.
  if (existsSync(cmakeJs)) {
    const places = ["--directory", root, "--out", resolve("build")];
    /** @type {(...args: string[]) => number} */
    const cmake = (...args) =>
      run(cmakeJs, [...args, "--log-level=warn", ...places, ...defined.map((text) => `--C${text}`)]);
    return cmake("configure") || cmake("build", "--parallel", jobs);
  }
  const configure = ["-S", root, "-B", "build", "-DCMAKE_BUILD_TYPE=Release", ...defined.map((text) => `-${text}`)];
  return run("cmake", configure) || run("cmake", ["--build", "build", "--parallel", jobs]);
}

function withGyp() {
  console.log("cmake was not found: building the CPU kernels with node-gyp");
  const gyp = process.env.npm_config_node_gyp;
  const args = ["rebuild", `--jobs=${jobs}`];
  // It downloads the headers of Node.js, unless it is told where they are.
  const folder = dirname(dirname(process.execPath));
  if (existsSync(join(folder, "include/node/node_api.h"))) args.push(`--nodedir=${folder}`);
  return gyp ? run(process.execPath, [gyp, ...args]) : run("node-gyp", args);
}

const cmake = found("cmake");
if (!cmake && !existsSync("binding.gyp")) {
  console.error("cmake was not found: to build the native addon, install CMake 3.18 or later and a C++20 compiler");
  process.exit(1);
}
const status = cmake ? withCMake() : withGyp();
if (status !== 0) process.exit(status);
const output = "build/Release/bitsandbytes.node";
// A build that had nothing to link is still newer than every source it looked at.
utimesSync(output, new Date(), new Date());
console.log(`${output}: ${(statSync(output).size / 1e6).toFixed(1)} MB`);
