// What the built addon asks of the machine it is loaded on, read from the file itself.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { root } from "../helpers/sources.js";

const folder = join(root, "build/Release");
const addon = join(folder, "bitsandbytes.node");
// Beside the clone's own, what a package would hold, where that was made.
const prebuilds = join(root, "prebuilds");
const binaries = readdirSync(prebuilds, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".node"));

// Oldest C library that the addon loads with: RHEL 8, Debian 10, Ubuntu 20.04, Amazon Linux 2023 and later; Node 20 asks for
// the same. tools/build/glibc.mjs sees to it, whatever the addon is built on.
const glibcFloor = [2, 28] as const;

describe("build/Release", () => {
  it("holds one addon, because the loader takes the first", () => {
    expect(existsSync(addon)).toBe(true);
    expect(readdirSync(folder).filter((name) => name.endsWith(".node"))).toEqual(["bitsandbytes.node"]);
  });
});

const all = [addon, ...binaries.map((name) => join(prebuilds, name))].map(
  (path) => [relative(root, path), path] as const,
);
describe.runIf(process.platform === "linux").each(all)("%s on Linux", (_, path) => {
  const tool = (command: string, ...args: string[]) => execFileSync(command, [...args, path], { encoding: "utf8" });

  it("needs only the C library", () => {
    const needed = [...tool("readelf", "--dynamic").matchAll(/\(NEEDED\).*\[(.+)\]/g)].map((match) => match[1]!);
    expect(needed.filter((name) => !/^(libc|libm|ld-linux[\w-]*)\.so/.test(name))).toEqual([]);
  });

  it(`loads with glibc ${glibcFloor.join(".")}`, () => {
    const versions = [...tool("objdump", "--dynamic-syms").matchAll(/GLIBC_(\d+)\.(\d+)/g)];
    expect(versions.length).toBeGreaterThan(50);
    const newer = versions.filter(([, major, minor]) => Number(major) > glibcFloor[0] || Number(minor) > glibcFloor[1]);
    expect(newer.map((match) => match[0])).toEqual([]);
  });

  // One without a version is found in whatever C library there is, or is not, when it is called.
  it("takes nothing else from outside than Node-API and names of a known version", () => {
    const names = [...tool("nm", "--dynamic", "--undefined-only").matchAll(/ U (\S+)$/gm)].map((match) => match[1]!);
    expect(names.filter((name) => !/@GLIBC_[\d.]+$/.test(name) && !/^(napi|node_api)_/.test(name))).toEqual([]);
  });

  it("exports nothing but Node-API's entry points", () => {
    const names = [...tool("nm", "--dynamic", "--defined-only").matchAll(/ \w (\S+)$/gm)].map((match) => match[1]!);
    const entryPoints = ["napi_register_module_v1", "node_api_module_get_api_version_v1"];
    expect(names).toContain(entryPoints[0]);
    expect(names.filter((name) => !entryPoints.includes(name))).toEqual([]);
  });
});
