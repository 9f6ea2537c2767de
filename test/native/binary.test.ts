// What the built addon asks of the machine it is loaded on, read from the file itself.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { root } from "../helpers/sources.js";

const folder = join(root, "build/Release");
const addon = join(folder, "bitsandbytes.node");
const tool = (command: string, ...args: string[]) => execFileSync(command, [...args, addon], { encoding: "utf8" });

// Oldest C library that the addon loads with, built on Debian 12: Ubuntu 22.04, Debian 12 (as in node:20-slim) and later.
const glibcFloor = [2, 35] as const;

describe("build/Release", () => {
  it("holds one addon, because the loader takes the first", () => {
    expect(existsSync(addon)).toBe(true);
    expect(readdirSync(folder).filter((name) => name.endsWith(".node"))).toEqual(["bitsandbytes.node"]);
  });
});

describe.runIf(process.platform === "linux")("bitsandbytes.node on Linux", () => {
  it("needs only the C library", () => {
    const needed = [...tool("readelf", "--dynamic").matchAll(/\(NEEDED\).*\[(.+)\]/g)].map((match) => match[1]!);
    expect(needed.filter((name) => !/^(libc|libm|libdl|libpthread|librt|ld-linux[\w-]*)\.so/.test(name))).toEqual([]);
  });

  it(`loads with glibc ${glibcFloor.join(".")}`, () => {
    const versions = [...tool("readelf", "--version-info").matchAll(/GLIBC_(\d+)\.(\d+)/g)];
    const newer = versions.filter(([, major, minor]) => Number(major) > glibcFloor[0] || Number(minor) > glibcFloor[1]);
    expect(newer.map((match) => match[0])).toEqual([]);
  });

  it("exports nothing but Node-API's entry points", () => {
    const names = [...tool("nm", "--dynamic", "--defined-only").matchAll(/ \w (\S+)$/gm)].map((match) => match[1]!);
    const entryPoints = ["napi_register_module_v1", "node_api_module_get_api_version_v1"];
    expect(names).toContain(entryPoints[0]);
    expect(names.filter((name) => !entryPoints.includes(name))).toEqual([]);
  });
});
