// Compiles src to dist: a declaration for each file, and the JavaScript in few files, a shared one for each layer, because
// opening hundreds takes most of the time of an import. Everything is CommonJS; the .mjs beside an entry point names what
// `require` gives, so that both kinds of program share one Tensor class. dist/package.json, written last, dates the build.
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { rolldown } from "rolldown";
import ts from "typescript";

/** The entry points of package.json; the command, and what tests of the native code take, which are only required. */
const entries = [
  "index",
  "functional",
  "nn/index",
  "optim/index",
  "hub/index",
  "serve/index",
  "cli/main",
  "native/runtime",
];
const onlyRequired = ["cli/main", "native/runtime"];
// The name is the folder in dist: files that are read at run time lie as deep there as in src.
const layers = [
  // What the command needs before it needs the addon, and what says why that does not load.
  {
    name: "core/plain",
    test: /\/src\/(native\/(errors|load)|tensor\/(errors|nearest|describe)|hub\/make-folders)\.ts$|\0using/,
    priority: 1,
  },
  { name: "core/code", test: /\/src\/(native|tensor|autograd|ops|nn|optim|functional)\b/ },
  { name: "hub/code", test: /\/src\/hub\// },
  { name: "models/code", test: /\/src\/(models|generation|peft|train)\// },
  { name: "serve/code", test: /\/src\/serve\// },
];
const asTheyAre = ["hub/tokenizer-worker.cjs", "hub/grammar-worker.cjs", "serve/page.html"];

/** Modules of Node.js that take a millisecond or more, and that many programs never need: loaded where they are first used. */
const seldom = ["crypto", "fs/promises", "os", "timers/promises", "worker_threads", "zlib"].map(
  (name) => `node:${name}`,
);

/**
 * Code that exports values at its end, instead of a function for each which gives the value of the moment.
 * @type {(code: string) => string}
 */
const withValues = (code) =>
  code.replace(
    /^Object\.defineProperty\(exports, "(\w+)", \{\s+enumerable: true,\s+get: function\(\) \{\s+return (\w+);\s+\}\s+\}\);$/gm,
    "exports.$1 = $2;",
  );

/** Layers that many programs which require the whole package use nothing of: they are loaded with the first name of theirs. */
const upper = ["./hub/code.js", "./models/code.js"];
/** @type {(code: string) => string} */
const withLateNames = (code) =>
  code.replace(
    /^exports\.(\w+) = (require_(?:hub|models)_code\.\w+);$/gm,
    'Object.defineProperty(exports, "$1", { enumerable: true, get: () => $2 });',
  );

/**
 * Code that requires a module when it uses it, instead of when it is loaded itself.
 * @type {(code: string, id: string) => string}
 */
function loadLate(code, id) {
  const found = new RegExp(`^(?:let|const) (\\w+) = require\\("${id}"\\);$`, "m").exec(code);
  if (!found) return code;
  const [line, name] = found;
  const late = code
    .replace(line, `const ${name} = { get all() { return require("${id}"); } };`)
    .replace(new RegExp(`\\b${name}\\.`, "g"), `${name}.all.`);
  const isWhole = new RegExp(`\\b${name}\\b(?! = |\\.all\\.)`).test(late);
  if (isWhole) throw new Error(`${id} is used as a whole: it cannot be loaded late`);
  return late;
}

/** @type {(character: string) => string} */
const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;

rmSync("dist", { recursive: true, force: true });
const { status } = spawnSync("node_modules/.bin/tsc", ["-p", "tsconfig.build.json"], { stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

// Files with `using`, which Node 20 lacks; the bundler's own way to write it otherwise would take a package at run time. The two
// functions that the compiler puts into each such file are a file of their own here.
const helpers = "__addDisposableResource, __disposeResources";
const using = {
  name: "using",
  /** @type {(id: string) => string | undefined} */
  resolveId: (id) => (id === "\0using" ? id : undefined),
  /** @type {(id: string) => string | undefined} */
  load: (id) => (id === "\0using" ? plain(`function unused() { using x = null; }\nexport { ${helpers} };`) : undefined),
  /** @type {(code: string, id: string) => { code: string, moduleType: "js" } | undefined} */
  transform(code, id) {
    if (!id.endsWith(".ts") || !/\busing \w+ =/.test(code)) return undefined;
    return { code: `import { ${helpers} } from "\0using";\n${plain(code, { noEmitHelpers: true })}`, moduleType: "js" };
  },
};

/** @type {(code: string, options?: ts.CompilerOptions) => string} */
function plain(code, options) {
  const compilerOptions = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, ...options };
  return ts.transpileModule(code, { compilerOptions }).outputText;
}

// The bundler takes a file that exports nothing for CommonJS, as src/package.json says, and makes a function of it and of each
// file that it imports, which is compiled twice: once to find its end, once to run it.
const modules = {
  name: "modules",
  /** @type {(code: string, id: string) => { code: string } | undefined} */
  transform(code, id) {
    if (!id.endsWith(".ts")) return undefined;
    if (/^export (let|var) /m.test(code)) throw new Error(`${id}: what is exported must not change: see withValues`);
    return !/^export /m.test(code) ? { code: `${code}\nexport {};\n` } : undefined;
  },
};

const bundle = await rolldown({
  plugins: [modules, using],
  input: Object.fromEntries(entries.map((entry) => [entry, `src/${entry}.ts`])),
  platform: "node",
  transform: { target: "node20.17" },
  external: (id) => !/^[./\0]/.test(id),
});
const { output } = await bundle.write({
  dir: "dist",
  format: "cjs",
  esModule: false,
  exports: "named",
  comments: false,
  entryFileNames: "[name].js",
  chunkFileNames: ({ name }) =>
    name.includes("/") ? `${name}.js` : name === "rolldown-runtime" ? "core/runtime.js" : `cli/${name}.js`,
  codeSplitting: { groups: layers },
});
for (const chunk of output) {
  if (chunk.type !== "chunk") continue;
  const code =
    chunk.name === "index"
      ? upper.reduce(loadLate, withLateNames(chunk.code))
      : seldom.reduce(loadLate, withValues(chunk.code));
  // One character beyond Latin-1 doubles what a whole file takes in memory.
  const latin1 = code.replace(/[^\0-\u00ff]/g, escaped);
  if (latin1 !== chunk.code) writeFileSync(join("dist", chunk.fileName), latin1);
  if (!chunk.isEntry || chunk.exports.length === 0 || onlyRequired.includes(chunk.name)) continue;
  const file = `./${basename(chunk.fileName)}`;
  const names = chunk.exports.filter((name) => name !== "default").sort();
  const all = names.map((name) => `export const ${name} = library.${name};\n`).join("");
  // Node 20 throws what a CommonJS file throws twice where it is imported, and the second cannot be caught.
  const require = `import { createRequire } from "node:module";\nconst library = createRequire(import.meta.url)("${file}");\n`;
  writeFileSync(`dist/${chunk.name}.mjs`, require + all);
  // Bundlers take this one, by the condition "module": they cannot see through the other.
  writeFileSync(`dist/${chunk.name}.bundler.mjs`, `import library from "${file}";\n${all}`);
}
// A project may name libraries that are older than `Symbol.dispose`, and lack the types of Node.js: what is theirs is then any.
for (const name of readdirSync("dist", { recursive: true, encoding: "utf8" })) {
  if (!/\.d\.m?ts$/.test(name)) continue;
  const path = join("dist", name);
  const text = readFileSync(path, "utf8");
  const disposes = /\bDisposable\b|Symbol\.(async)?[dD]ispose/.test(text);
  const library = disposes ? '/// <reference lib="esnext.disposable" />\n' : "";
  const declared = library + text.replace(/^(import .* from "node:|\s*\[inspect\.custom\])/gm, "// @ts-ignore\n$1");
  if (declared !== text) writeFileSync(path, declared);
}
for (const file of asTheyAre) copyFileSync(`src/${file}`, `dist/${file}`);
chmodSync("dist/cli/main.js", 0o755);
copyFileSync("src/package.json", "dist/package.json");
utimesSync("dist/package.json", new Date(), new Date());
console.log(`dist: ${output.length} files of JavaScript`);
