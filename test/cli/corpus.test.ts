// The demo's text: which files are taken, in which order, and what is refused.
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { CorpusOptions } from "../../src/cli/demo/corpus.js";
import { fileCorpus, packageCorpus } from "../../src/cli/demo/corpus.js";

let root: string;
const options: CorpusOptions = { name: "files", extension: ".md", minBytes: 1, maxBytes: 1000, maxFileBytes: 100 };
const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();

function put(path: string, content: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), content);
}

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "corpus-"));
});
afterEach(() => rmSync(root, { recursive: true }));

describe("packageCorpus", () => {
  it("joins files in the order of their paths, each content once", () => {
    put("node_modules/b/README.md", "second");
    put("node_modules/a/docs/z.md", "first");
    put("node_modules/a/docs/copy.md", "first");
    put("node_modules/a/docs/code.js", "no");
    const { bytes, source } = packageCorpus(options, root);
    expect(text(bytes)).toBe("firstsecond");
    expect(source).toBe("2 files of the installed packages");
  });

  it("leaves out licences, hidden folders, links, other scripts and packages for one platform", () => {
    put("node_modules/a/README.md", "text");
    put("node_modules/a/LICENSE.md", "licence");
    put("node_modules/.cache/x.md", "cache");
    put("node_modules/a/README.hi.md", "नमस्ते".repeat(3));
    put("node_modules/native-linux/README.md", "native");
    put("node_modules/native-linux/package.json", '{"os": ["linux"]}');
    symlinkSync(join(root, "node_modules/a"), join(root, "node_modules/link"));
    expect(text(packageCorpus(options, root).bytes)).toBe("text");
  });

  it("keeps to the limits per file and in all", () => {
    put("node_modules/a/1.md", "x".repeat(150));
    put("node_modules/a/2.md", "y".repeat(150));
    const { bytes } = packageCorpus({ ...options, maxBytes: 130 }, root);
    expect(text(bytes)).toBe("x".repeat(100) + "y".repeat(30));
  });

  it("looks in the folders above, as for an installed package", () => {
    put("node_modules/a/README.md", "text");
    put("node_modules/own/dist/x.js", "");
    expect(text(packageCorpus(options, join(root, "node_modules/own")).bytes)).toBe("text");
  });

  it("says what is missing", () => {
    expect(() => packageCorpus({ ...options, minBytes: 1e12 }, root)).toThrow(/must hold 1000000000000 bytes of files/);
  });
});

describe("fileCorpus", () => {
  it("reads a file up to the limit", () => {
    put("own.txt", "a".repeat(2000));
    expect(fileCorpus(join(root, "own.txt"), options).bytes.length).toBe(1000);
  });

  it("rejects a missing and a short file", () => {
    const wrong = expect.objectContaining({ code: "ERR_BNB_ARGUMENT" });
    expect(() => fileCorpus(join(root, "none.txt"), options)).toThrow(wrong);
    put("short.txt", "a");
    expect(() => fileCorpus(join(root, "short.txt"), { ...options, minBytes: 10 })).toThrow(/at least 10 bytes, got 1/);
  });
});
