// The repository's own files as text, for the tests that hold its structure.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

/** The root of the repository. */
export const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");

/** Every file that git tracks or would track, relative to the root. */
export const files: string[] = execFileSync("git", ["ls-files", "-co", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\n")
  .filter((path) => path !== "" && !path.startsWith("test/fixtures/"))
  .sort();

/** The files under a folder, with one of the endings. */
export const filesIn = (folder: string, ...endings: string[]): string[] =>
  files.filter((path) => path.startsWith(`${folder}/`) && endings.some((ending) => path.endsWith(ending)));

const texts = new Map<string, string>();

/** A file's text; a file that was deleted and is still tracked reads as empty. */
export function read(path: string): string {
  let text = texts.get(path);
  if (text === undefined) {
    try {
      text = readFileSync(join(root, path), "utf8");
    } catch {
      text = "";
    }
    texts.set(path, text);
  }
  return text;
}

/** A text without its comments. */
export const withoutComments = (text: string): string =>
  text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|[^:"'])\/\/.*$/gm, "$1");

/**
 * What a TypeScript file imports or re-exports, also for its types alone and when it runs: files relative to the root,
 * and names of packages.
 */
export function importsOf(path: string): string[] {
  const text = withoutComments(read(path));
  const statement = /\b(?:import|export)\s+(?:type\s+)?(?:[\w*{}\s,$]+?\s+from\s+)?["']([^"']+)["']/g;
  const dynamic = /\bimport\(\s*["']([^"']+)["']\s*\)/g;
  return [statement, dynamic].flatMap((pattern) =>
    [...text.matchAll(pattern)].map((match) => resolve(path, match[1]!)),
  );
}

function resolve(from: string, target: string): string {
  if (!target.startsWith(".")) return target;
  return relative(root, join(root, dirname(from), target)).replace(/\.(m?)js$/, ".$1ts");
}

/** The quoted and the angle-bracket includes of a C++ file. */
export function includesOf(path: string): { own: string[]; system: string[] } {
  const text = read(path);
  const all = (pattern: RegExp) => [...text.matchAll(pattern)].map((match) => match[1]!);
  return { own: all(/^\s*#\s*include\s+"([^"]+)"/gm), system: all(/^\s*#\s*include\s+<([^>]+)>/gm) };
}

/** `rms_norm` as TypeScript and the addon spell it: `rmsNorm`. */
export const camelCase = (name: string): string => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

/** `rms_norm` as a TypeScript file is called: `rms-norm`. */
export const kebabCase = (name: string): string => name.replaceAll("_", "-");
