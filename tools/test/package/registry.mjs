// Programs from the npm registry, each once in a folder of build-tools: other versions of Node.js and npm, other runtimes,
// compilers and bundlers. None of them has an install script that matters here.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

/**
 * A folder whose node_modules has the packages, such as "npm@11".
 * @param {string[]} packages
 */
export function fromRegistry(...packages) {
  const name = packages.join("+").replaceAll("/", "-").replaceAll("^", "");
  const folder = resolve("build-tools", "npm", name);
  if (existsSync(folder)) return folder;
  const half = `${folder}.half`;
  rmSync(half, { recursive: true, force: true });
  mkdirSync(half, { recursive: true });
  writeFileSync(join(half, "package.json"), "{}\n");
  const args = ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--force", ...packages];
  const { status, stdout, stderr } = spawnSync("npm", args, { cwd: half, encoding: "utf8" });
  if (status !== 0) throw new Error(`npm has no ${packages.join(" and ")} for us: ${stderr || stdout}`);
  renameSync(half, folder);
  return folder;
}

/** @typedef {{ name: string, command: string, args: string[], folder?: string }} Runtime */

/** Where this very Node.js is. */
export const ownNode = () => ({ name: `Node ${process.versions.node}`, command: process.execPath, args: [] });

/** @type {(version: number, arch?: string) => Runtime} */
export function node(version, arch = "x64") {
  const folder = fromRegistry(`node-linux-${arch}@${version}`);
  return { name: `Node ${version}`, command: join(folder, `node_modules/node-linux-${arch}/bin/node`), args: [] };
}

/** @type {() => Runtime} */
export function bun() {
  const folder = fromRegistry("@oven/bun-linux-x64-baseline");
  return { name: "Bun", command: join(folder, "node_modules/@oven/bun-linux-x64-baseline/bin/bun"), args: ["run"] };
}

/** @type {() => Runtime} */
export function deno() {
  const folder = fromRegistry("@deno/linux-x64-glibc");
  const command = join(folder, "node_modules/@deno/linux-x64-glibc/deno");
  return { name: "Deno", command, args: ["run", "--allow-all", "--no-prompt"] };
}

/**
 * npm of a version, run by this Node.js.
 * @type {(version: number) => string[]}
 */
export const npm = (version) => [
  process.execPath,
  join(fromRegistry(`npm@${version}`), "node_modules/npm/bin/npm-cli.js"),
];

/** The folder of npm's own command, for what runs `npm` by name. */
export const npmFolder = () => dirname(process.execPath);
