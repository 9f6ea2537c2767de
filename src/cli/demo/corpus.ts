// Real text that every checkout has: the documentation and the type declarations of the installed packages. Files
// are taken in the order of their paths, so that the same lockfile gives the same text on every machine.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { packageRoot } from "../../native/load.js";
import { BnbError } from "../../tensor/errors.js";

/** A text and where it came from. */
export interface Corpus {
  bytes: Uint8Array;
  /** What a reader is told: "204 Markdown files of the installed packages". */
  source: string;
}

/** Which files make a text. */
export interface CorpusOptions {
  /** What the files are called in `source`. */
  name: string;
  extension: string;
  /** Fewer bytes than this are refused. */
  minBytes: number;
  maxBytes: number;
  /** At most this many bytes of one file, so that no long file is most of the text. */
  maxFileBytes: number;
}

/** Reads the text of the installed packages, from the nearest `node_modules` that holds enough of it. */
export function packageCorpus(options: CorpusOptions, from: string = packageRoot): Corpus {
  for (let folder = from; ; folder = dirname(folder)) {
    const root = join(folder, "node_modules");
    const corpus = existsSync(root) ? readCorpus(root, options) : null;
    if (corpus && corpus.bytes.length >= options.minBytes) return corpus;
    if (folder === dirname(folder)) break;
  }
  throw new BnbError(
    "ERR_BNB_ARGUMENT",
    `demo: the installed packages must hold ${options.minBytes} bytes of ${options.name}; give a text of your own`,
  );
}

/** Reads one file of the user's. */
export function fileCorpus(path: string, { minBytes, maxBytes }: CorpusOptions): Corpus {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new BnbError("ERR_BNB_ARGUMENT", `demo: ${path} must be a readable file`, { cause });
  }
  if (bytes.length < minBytes) {
    throw new BnbError("ERR_BNB_ARGUMENT", `demo: ${path} must have at least ${minBytes} bytes, got ${bytes.length}`);
  }
  return { bytes: bytes.subarray(0, maxBytes), source: path };
}

function readCorpus(root: string, { name, extension, maxBytes, maxFileBytes }: CorpusOptions): Corpus {
  const paths = [...filesBelow(root, extension)].sort((a, b) => (portable(root, a) < portable(root, b) ? -1 : 1));
  const seen = new Set<string>();
  const pieces: Uint8Array[] = [];
  let total = 0;
  for (const path of paths) {
    const bytes = readFileSync(path);
    const hash = createHash("sha256").update(bytes).digest("hex");
    if (seen.has(hash) || !isMostlyAscii(bytes)) continue;
    seen.add(hash);
    pieces.push(bytes.subarray(0, Math.min(maxFileBytes, maxBytes - total)));
    total += (pieces.at(-1) as Uint8Array).length;
    if (total >= maxBytes) break;
  }
  return { bytes: Buffer.concat(pieces), source: `${pieces.length} ${name} of the installed packages` };
}

/** Files with a name ending, without hidden folders, links, licences and packages made for one platform. */
function* filesBelow(folder: string, extension: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      if (!entry.name.startsWith(".") && !isForOnePlatform(path)) yield* filesBelow(path, extension);
    } else if (entry.isFile() && entry.name.endsWith(extension) && !/^licen[cs]e/i.test(entry.name)) {
      yield path;
    }
  }
}

/** Whether a package is installed on some machines only, which would make the text differ between them. */
function isForOnePlatform(folder: string): boolean {
  const manifest = join(folder, "package.json");
  if (!existsSync(manifest)) return false;
  const text = readFileSync(manifest, "utf8");
  if (!text.includes('"os"') && !text.includes('"cpu"')) return false;
  const { os, cpu } = JSON.parse(text) as { os?: unknown; cpu?: unknown };
  return os !== undefined || cpu !== undefined;
}

function portable(root: string, path: string): string {
  return relative(root, path).split(sep).join("/");
}

/** A model of this size does not learn a second script; such files would only blur the measurement. */
function isMostlyAscii(bytes: Uint8Array): boolean {
  let high = 0;
  for (const byte of bytes) if (byte >= 128) high++;
  return high <= bytes.length * 0.05;
}
