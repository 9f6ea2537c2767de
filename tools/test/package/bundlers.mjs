// The package in the bundles of esbuild and webpack: left out of them, and inside with only the addon left out.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fromRegistry } from "./registry.mjs";
import { output, row } from "./rows.mjs";
import { sum } from "./snippets.mjs";

/** @param {string} cwd */
export async function tryBundlers(cwd) {
  writeFileSync(
    join(cwd, "entry.mjs"),
    `(async () => {\n${sum.replace(/^import \{(.*)\} from (.*);$/gm, "const {$1} = await import($2);")}})();\n`,
  );
  mkdirSync(join(cwd, "out"), { recursive: true });
  const binary = join(
    cwd,
    "node_modules/bitsandbytes-node/prebuilds",
    `${process.platform}-${process.arch}`,
    "bitsandbytes.node",
  );
  /** @type {(name: string, external: boolean, make: () => void, file: string) => Promise<void>} */
  const bundle = (name, external, make, file) =>
    row(name, external ? "package external" : "package inside", () => {
      make();
      if (external) return void output(process.execPath, [file], { cwd });
      // Nothing says where the binary is but the variable.
      try {
        output(process.execPath, [file], { cwd });
        throw new Error("the bundle found a binary where none is");
      } catch (error) {
        if (!String(error).includes("a bundler has moved it")) throw error;
      }
      output(process.execPath, [file], { cwd, env: { BNB_BINARY: binary } });
      return "BNB_BINARY names the .node file";
    });

  const esbuild = join(fromRegistry("esbuild"), "node_modules/@esbuild/linux-x64/bin/esbuild");
  for (const external of [true, false]) {
    const file = `out/esbuild-${external}.cjs`;
    const options = ["--bundle", "--platform=node", "--format=cjs", "--log-level=error", `--outfile=${file}`];
    if (external) options.push("--external:bitsandbytes-node", "--external:bitsandbytes-node/*");
    await bundle("esbuild", external, () => void output(esbuild, ["entry.mjs", ...options], { cwd }), file);
  }
  const packages = fromRegistry("webpack", "webpack-cli");
  for (const external of [true, false]) {
    const file = `out/webpack-${external}.cjs`;
    const settings = {
      mode: "production",
      target: "node",
      entry: "./entry.mjs",
      context: cwd,
      output: { path: cwd, filename: file },
      ...(external && {
        externalsType: "commonjs",
        externals: Object.fromEntries(
          ["", "/nn", "/optim"].map((path) => [`bitsandbytes-node${path}`, `bitsandbytes-node${path}`]),
        ),
      }),
    };
    writeFileSync(join(cwd, "webpack.config.cjs"), `module.exports = ${JSON.stringify(settings)};\n`);
    const bin = join(packages, "node_modules/webpack/bin/webpack.js");
    const make = () =>
      void output(process.execPath, [bin, "--config", "webpack.config.cjs"], {
        cwd,
        env: { NODE_PATH: join(packages, "node_modules") },
      });
    await bundle("webpack", external, make, file);
  }
}
