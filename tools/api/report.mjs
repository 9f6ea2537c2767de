// Holds the public API against test/api, a file for each entry point of the package: every name with its declaration as dist has
// it, without comments, and the types that those name though no entry point exports them. Who changes the API changes these files,
// which `npm run format` does (--write here), and a review sees it. A name without a comment is refused.
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import ts from "typescript";

const folder = "test/api";
const manifest = JSON.parse(readFileSync("package.json", "utf8"));
/** @type {[path: string, conditions: { require?: { types: string } }][]} */
const paths = Object.entries(manifest.exports);
const entries = paths.flatMap(([path, { require }]) =>
  require
    ? [{ name: manifest.name + path.slice(1), file: resolve(require.types), report: `${path.slice(2) || "index"}.md` }]
    : [],
);

const program = ts.createProgram(
  entries.map(({ file }) => file),
  { module: ts.ModuleKind.NodeNext, target: ts.ScriptTarget.ES2022, types: ["node"], skipLibCheck: true, noEmit: true },
);
const checker = program.getTypeChecker();
const printer = ts.createPrinter({ removeComments: true });

/** @type {(symbol: ts.Symbol) => ts.Symbol} */
const target = (symbol) => (symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol);

/** @type {(file: string) => ts.Symbol} */
function moduleOf(file) {
  const source = program.getSourceFile(file);
  const symbol = source && checker.getSymbolAtLocation(source);
  if (!symbol) throw new Error(`${file} must be a module of dist: run "npm run build:ts"`);
  return symbol;
}

/** What is the library's own: marked so, or private. */
/** @type {(node: ts.Node) => boolean} */
const isInternal = (node) =>
  ts.getJSDocTags(node).some(({ tagName }) => tagName.text === "internal") ||
  (ts.isPropertyDeclaration(node) && ts.isPrivateIdentifier(node.name)) ||
  (ts.canHaveModifiers(node) && !!node.modifiers?.some(({ kind }) => kind === ts.SyntaxKind.PrivateKeyword));

/** The declarations of a symbol in dist that are for users, with those that other files merge into it. */
/** @type {(symbol: ts.Symbol) => ts.Node[]} */
const declarations = (symbol) =>
  (symbol.declarations ?? [])
    .filter((node) => node.getSourceFile().fileName.startsWith(resolve("dist")) && !isInternal(node))
    .map((node) => (ts.isVariableDeclaration(node) ? node.parent.parent : node));

/** @type {(node: ts.Node) => string} */
function print(node) {
  /** @type {ts.TransformerFactory<ts.Node>} */
  const publicPart = (context) => (root) => {
    /** @type {(inner: ts.Node) => ts.Node | undefined} */
    const visit = (inner) => (isInternal(inner) ? undefined : ts.visitEachChild(inner, visit, context));
    return ts.visitEachChild(root, visit, context);
  };
  const [part = node] = ts.transform(node, [publicPart]).transformed;
  const text = printer.printNode(ts.EmitHint.Unspecified, part, node.getSourceFile());
  return text.replace(/^(export )?(default )?(declare )?/, "");
}

/** What the public part of a declaration names that is declared in a file of dist, as no member and no parameter is. */
/** @type {(node: ts.Node) => ts.Symbol[]} */
function namedBy(node) {
  if (isInternal(node)) return [];
  const symbol = ts.isIdentifier(node) ? checker.getSymbolAtLocation(node) : undefined;
  /** @type {ts.Symbol[]} */
  const found = [];
  if (symbol && declarations(target(symbol)).some(({ parent }) => ts.isSourceFile(parent))) found.push(target(symbol));
  ts.forEachChild(node, (child) => void found.push(...namedBy(child)));
  return found;
}

/** @type {<T>(items: T[], text: (item: T) => string) => T[]} */
const sorted = (items, text) => items.sort((a, b) => (text(a) < text(b) ? -1 : 1));

/** The names of a module with what they stand for; of a namespace that is no entry point, its names instead. */
/** @type {(module: ts.Symbol, prefix?: string) => [name: string, symbol: ts.Symbol][]} */
const namesOf = (module, prefix = "") =>
  sorted(checker.getExportsOfModule(module), ({ name }) => name).flatMap((exported) => {
    const symbol = target(exported);
    const isNamespace = symbol.flags & ts.SymbolFlags.ValueModule && !modules.has(symbol);
    return isNamespace ? namesOf(symbol, `${exported.name}.`) : [[prefix + exported.name, symbol]];
  });

/** @type {string[]} */
const undocumented = [];

const modules = new Map(entries.map(({ name, file }) => [moduleOf(file), name]));
/** Where each symbol is reported. */
/** @type {Map<ts.Symbol, string>} */
const homes = new Map();
const exported = new Set([...modules.keys()].flatMap((module) => namesOf(module).map(([, symbol]) => symbol)));

/** @type {(module: ts.Symbol, entry: string) => string} */
function report(module, entry) {
  /** @type {{ elsewhere: string[], own: string[], hidden: string[] }} */
  const { elsewhere, own, hidden } = { elsewhere: [], own: [], hidden: [] };
  /** @type {Set<ts.Symbol>} */
  const reached = new Set();
  for (const [name, symbol] of namesOf(module)) {
    const home = modules.get(symbol) ?? homes.get(symbol);
    if (home !== undefined) {
      elsewhere.push(`${name}: ${home}${symbol.name === name || modules.has(symbol) ? "" : `, ${symbol.name}`}`);
      continue;
    }
    homes.set(symbol, entry);
    const nodes = declarations(symbol);
    if (nodes.length === 0) continue;
    if (symbol.getDocumentationComment(checker).length === 0) undocumented.push(name);
    own.push([...(symbol.name === name ? [] : [`// as ${name}`]), ...nodes.map(print)].join("\n"));
    for (const one of nodes.flatMap(namedBy)) reached.add(one);
  }
  // Grows while it is gone through.
  for (const symbol of reached) {
    if (exported.has(symbol) || homes.has(symbol)) continue;
    homes.set(symbol, entry);
    const nodes = declarations(symbol);
    hidden.push(nodes.map(print).join("\n"));
    for (const one of nodes.flatMap(namedBy)) reached.add(one);
  }
  /** @type {(title: string, blocks: string[], language?: string) => string} */
  const section = (title, blocks, language = "") =>
    blocks.length === 0 ? "" : `\n## ${title}\n\n\`\`\`${language}\n${blocks.join("\n")}\n\`\`\`\n`;
  return (
    `# ${entry}\n\nMade by \`npm run format\`; \`npm run check\` holds it against the declarations in dist.\n` +
    section("Declared with another entry point", elsewhere) +
    section("Exported", own, "ts") +
    section(
      "Not exported, but named by the above",
      sorted(hidden, (text) => text),
      "ts",
    )
  );
}

const reports = entries.map(({ name, file, report: path }) => ({ path, text: report(moduleOf(file), name) }));
if (undocumented.length > 0) {
  console.log(`Every name that users can import needs a comment of what it is: ${undocumented.join(", ")}.`);
  process.exitCode = 1;
}
if (process.argv.includes("--write")) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  for (const { path, text } of reports) writeFileSync(join(folder, path), text);
} else {
  const now = mkdtempSync(join(tmpdir(), "bnb-api-"));
  for (const { path, text } of reports) writeFileSync(join(now, path), text);
  const options = ["diff", "--no-index", "--no-color", "--unified=1", "--src-prefix=committed/", "--dst-prefix=now/"];
  const { stdout, status } = spawnSync("git", [...options, folder, now], { encoding: "utf8" });
  rmSync(now, { recursive: true });
  if (status !== 0) {
    console.log(
      stdout
        .replace(/^(diff|index) .*\n/gm, "")
        .replaceAll(`${now}/`, "/")
        .replaceAll(`${folder}/`, ""),
    );
    console.log(
      'The public API has changed. If that is meant, "npm run format" writes it down; CHANGELOG.md tells users.',
    );
    process.exitCode = 1;
  }
}
