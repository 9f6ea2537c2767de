// The declarations of the package: by TypeScript of several versions, as strict as it gets and without @types/node, and by the
// two linters of packages.
import { writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fromRegistry } from "./registry.mjs";
import { output, row } from "./rows.mjs";

const names = ["", "/nn", "/optim", "/hub", "/serve", "/functional"].map((path) => `bitsandbytes-node${path}`);
const program = `${names.map((name, i) => `import * as m${i} from "${name}";\nexport const n${i}: object = m${i};\n`).join("")}
import { ones, tidy, type Tensor } from "bitsandbytes-node";
export const sum: Tensor = tidy(() => ones([2, 3]).add(1).sum());
{
  using scoped = ones([1]);
  void scoped.shape;
}
`;

/** @type {Record<string, { module: string, moduleResolution: string }>} */
const resolutions = {
  node16: { module: "node16", moduleResolution: "node16" },
  nodenext: { module: "nodenext", moduleResolution: "nodenext" },
  bundler: { module: "esnext", moduleResolution: "bundler" },
};

/**
 * @param {string} cwd
 * @param {string[]} versions those of the registry; none: the clone's own, and nodenext alone
 */
export async function tryTypes(cwd, versions) {
  for (const ending of ["mts", "cts"]) writeFileSync(join(cwd, `user.${ending}`), program);
  const strict = { strict: true, noEmit: true, skipLibCheck: false, target: "es2022", types: [] };
  /** @type {(tsc: string, name: string) => void} */
  const check = (tsc, name) => {
    const files = name === "bundler" ? ["user.mts"] : ["user.mts", "user.cts"];
    const compilerOptions = { ...strict, ...resolutions[name] };
    writeFileSync(join(cwd, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
    output(process.execPath, [tsc, "-p", "."], { cwd });
  };
  const note = "strict, without skipLibCheck and @types/node";
  for (const version of versions) {
    await row(`TypeScript ${version}`, Object.keys(resolutions).join(", "), () => {
      const tsc = join(fromRegistry(`typescript@~${version}`), "node_modules/typescript/bin/tsc");
      for (const name of Object.keys(resolutions)) check(tsc, name);
      return note;
    });
  }
  if (versions.length > 0) return;
  await row("TypeScript of the clone", "nodenext", () => {
    check(resolve("node_modules/typescript/bin/tsc"), "nodenext");
    return note;
  });
}

/** @param {string} tarball */
export async function lint(tarball) {
  await row("publint", "clean", () => {
    const bin = join(fromRegistry("publint"), "node_modules/publint/src/cli.js");
    const text = output(process.execPath, [bin, "run", tarball, "--strict"], { cwd: resolve(".") });
    if (!/All good/.test(text)) throw new Error(text);
  });
  await row("@arethetypeswrong/cli", "clean", () => {
    const bin = join(fromRegistry("@arethetypeswrong/cli"), "node_modules/@arethetypeswrong/cli/dist/index.js");
    output(process.execPath, [bin, tarball, "--profile", "node16", "--no-emoji"], { cwd: resolve(".") });
  });
}
