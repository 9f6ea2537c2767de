// The package where Node.js holds something back or shares something: permissions, no addons, threads, one executable.
import { chmodSync, copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fromRegistry } from "./registry.mjs";
import { output, row } from "./rows.mjs";
import { asCommonJs, sum } from "./snippets.mjs";

const threads = `const { Worker, isMainThread, parentPort } = require("node:worker_threads");
const { ones } = require("bitsandbytes-node");
if (isMainThread) {
  const answers = Array.from({ length: 4 }, () => new Promise((resolve, reject) => {
    new Worker(__filename).on("message", resolve).on("error", reject);
  }));
  Promise.all(answers).then((all) => { if (all.join() !== "12,12,12,12") throw new Error(all.join()); });
} else ones([2, 3]).add(1).sum().item().then((value) => parentPort.postMessage(value));
`;

const refused = `import("bitsandbytes-node").then(() => { throw new Error("it loaded"); }, (e) => {
  if (e.code !== "ERR_BNB_NO_BINARY" || !e.message.includes("addons are switched off")) throw e;
});
`;

/**
 * @param {import("./registry.mjs").Runtime} runtime
 * @param {string} cwd
 */
export async function tryModes({ name, command }, cwd) {
  /** @type {(file: string, text: string, ...flags: string[]) => string} */
  const run = (file, text, ...flags) => {
    writeFileSync(join(cwd, file), text);
    return output(command, [...flags, join(cwd, file)], { cwd });
  };
  const major = Number(/\d+/.exec(name)?.[0]);
  await row(name, "worker_threads", () => void run("threads.cjs", threads));
  await row(name, "--no-addons says so", () => void run("refused.cjs", refused, "--no-addons"));
  await row(name, "--permission", () => {
    const permission = major < 23 ? "--experimental-permission" : "--permission";
    // The package and what it depends on, the program, and no more.
    const reads = [join(cwd, "node_modules", "*"), join(cwd, "permission.cjs")].map(
      (path) => `--allow-fs-read=${path}`,
    );
    run("permission.cjs", asCommonJs(sum), permission, "--allow-addons", ...reads, "--no-warnings");
    return "--allow-addons, reading node_modules";
  });
}

/**
 * A single executable application whose package lies beside it.
 * @param {import("./registry.mjs").Runtime} runtime
 * @param {string} cwd
 */
export async function tryExecutable({ name, command }, cwd) {
  await row(name, "single executable application", () => {
    const body = asCommonJs(sum).replaceAll("require(", "load(");
    const load = `const load = require("node:module").createRequire(process.execPath);\n`;
    writeFileSync(join(cwd, "app.cjs"), load + body);
    writeFileSync(
      join(cwd, "sea.json"),
      '{ "main": "app.cjs", "output": "app.blob", "disableExperimentalSEAWarning": true }',
    );
    output(command, ["--experimental-sea-config", "sea.json"], { cwd });
    const app = join(cwd, "app");
    copyFileSync(command, app);
    chmodSync(app, 0o755);
    const postject = join(fromRegistry("postject@1.0.0-alpha.6"), "node_modules/postject/dist/cli.js");
    const fuse = "NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2";
    output(process.execPath, [postject, app, "NODE_SEA_BLOB", "app.blob", "--sentinel-fuse", fuse], { cwd });
    output(app, [], { cwd });
    return "with node_modules beside it";
  });
}
