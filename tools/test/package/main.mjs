// npm run test:package [-- --all] [-- --write]: packs the package, installs the tarball into empty projects, with no script
// run, and uses it there. By default with this machine's Node.js and npm and nothing from a network; with --all in every
// runtime, TypeScript, bundler and C library that we name, which come from the registries; --write puts the table of what ran into
// the README. Where the clone has no prebuilt binary, its own build takes that place in the installed package.
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tryBundlers } from "./bundlers.mjs";
import { install, pack } from "./install.mjs";
import { tryExecutable, tryModes } from "./modes.mjs";
import { tryOldGlibc } from "./old-glibc.mjs";
import { bun, deno, node, npm, ownNode } from "./registry.mjs";
import { output, row, rows, table, writeTable } from "./rows.mjs";
import { asCommonJs, snippets, sum } from "./snippets.mjs";
import { lint, tryTypes } from "./types.mjs";

const all = process.argv.includes("--all");
const folder = mkdtempSync(join(tmpdir(), "bnb-package-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

const tarball = pack(folder);

/**
 * A project with the tarball installed by an npm.
 * @param {string} name
 * @param {string[]} command
 */
function project(name, command) {
  const cwd = install(folder, name, command, tarball);
  const binary = join(
    cwd,
    "node_modules/bitsandbytes-node/prebuilds",
    `${process.platform}-${process.arch}`,
    "bitsandbytes.node",
  );
  if (!existsSync(binary)) {
    mkdirSync(join(binary, ".."), { recursive: true });
    copyFileSync("build/Release/bitsandbytes.node", binary);
  }
  return cwd;
}

/**
 * Runs a program in a runtime from a file of a project.
 * @param {import("./registry.mjs").Runtime} runtime
 * @param {string} cwd
 * @param {string} name
 * @param {string} text
 */
function run({ command, args }, cwd, name, text) {
  writeFileSync(join(cwd, name), text);
  return output(command, [...args, name], { cwd });
}

/** @type {(runtime: import("./registry.mjs").Runtime, cwd: string) => Promise<void>} */
async function tryRuntime(runtime, cwd) {
  for (const [kind, ending] of [
    ["import", "mjs"],
    ["require", "cjs"],
  ]) {
    await row(runtime.name, kind ?? "", () => {
      const programs = all ? [sum, ...snippets()] : [sum];
      for (const [i, code] of programs.entries())
        run(runtime, cwd, `${i}.${ending}`, ending === "cjs" ? asCommonJs(code) : code);
      return all ? `${programs.length} programs` : "";
    });
  }
}

const own = project("own", ["npm"]);
const version = output(join(own, "node_modules/.bin/bnb"), ["--version"], { cwd: own });
await row("npm of this machine", "bnb --version", () => version);
await tryRuntime(ownNode(), own);
await tryModes(ownNode(), own);
if (!all) await tryTypes(own, []);
if (all) {
  for (const major of [10, 11, 12]) {
    await row(`npm ${major}`, "installs without scripts, import", () => {
      run(ownNode(), project(`npm${major}`, npm(major)), "sum.mjs", sum);
    });
  }
  for (const major of [20, 22, 24, 26]) {
    const runtime = node(major);
    await tryRuntime(runtime, own);
    await tryModes(runtime, own);
  }
  for (const runtime of [bun(), deno()]) await tryRuntime(runtime, own);
  await tryTypes(own, ["5.4", "5.5", "5.6", "5.7", "5.8", "5.9", "6.0", "7.0"]);
  await lint(tarball);
  await tryBundlers(own);
  await tryExecutable(node(22), own);
  await tryExecutable(node(24), own);
  await tryOldGlibc(own);
}
console.log(`\n${table()}\n`);
const failed = rows.filter((row) => !row.ok);
if (process.argv.includes("--write") && failed.length === 0) writeTable();
console.log(
  `the package, ${version}: ${rows.length - failed.length} of ${rows.length} ways to use it work from its tarball`,
);
process.exitCode = failed.length > 0 ? 1 : 0;
