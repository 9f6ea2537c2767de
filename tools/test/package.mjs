// npm run test:package: packs the package, installs the tarball in an empty folder, and uses it there by import, by
// require and as the bnb command. test/package.test.ts looks at the same things inside the repository; what it cannot
// see is a file that the tarball lacks. The clone's own binary is loaded, since the tarball has none without prebuilds.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const folder = mkdtempSync(join(tmpdir(), "bnb-package-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

/** @type {(command: string, args: string[], cwd?: string) => string} */
function run(command, args, cwd = folder) {
  const env = { ...process.env, BNB_BINARY: resolve("build/Release/bitsandbytes.node") };
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, env, encoding: "utf8" });
  if (error) throw error;
  if (status !== 0) {
    console.error(`FAILED ${command} ${args.join(" ")}\n${stdout}${stderr}`);
    process.exit(1);
  }
  return stdout.trim();
}

const packed = run("npm", ["pack", "--ignore-scripts", "--silent", "--pack-destination", folder], process.cwd());
const tarball = join(folder, packed.split("\n").at(-1) ?? "");
writeFileSync(join(folder, "package.json"), '{ "name": "user", "version": "1.0.0", "private": true }\n');
// The one dependency from here, so that no network is needed.
const dependency = resolve("node_modules/node-gyp-build");
run("npm", ["install", "--offline", "--no-audit", "--no-fund", "--silent", dependency, tarball]);

const names = ["bitsandbytes-node", "bitsandbytes-node/nn", "bitsandbytes-node/optim", "bitsandbytes-node/functional"];
const use =
  "const y = B.ones([2, 3]).add(1).sum(); if ((await y.item()) !== 12) throw new Error(String(await y.item()));";
run("node", [
  "--input-type=module",
  "-e",
  `import * as B from "bitsandbytes-node"; ${use} for (const name of ${JSON.stringify(names)}) await import(name);`,
]);
run("node", ["-e", `const B = require("bitsandbytes-node"); (async () => { ${use} })();`]);
for (const name of names) run("node", ["-e", `require(${JSON.stringify(name)})`]);
const version = run("node_modules/.bin/bnb", ["--version"]);

for (const ending of ["mts", "cts"]) {
  const lines = names.map((name, i) => `import * as m${i} from "${name}";\nexport const n${i}: object = m${i};\n`);
  writeFileSync(join(folder, `user.${ending}`), lines.join(""));
}
const options = "--strict --noEmit --module nodenext --target es2022 --lib es2022,esnext.disposable --types node".split(
  " ",
);
const roots = ["--typeRoots", resolve("node_modules/@types")];
run("node", [resolve("node_modules/typescript/bin/tsc"), ...options, ...roots, "user.mts", "user.cts"]);
console.log(`the package, ${version}, works from its tarball: import, require, types and bnb`);
