// What is said when the native binary cannot be had: each case with its reason and its way out.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { loadAddon } from "../../src/native/load.js";

const platform = `${process.platform}-${process.arch}`;
const folder = mkdtempSync(join(tmpdir(), "bnb-load-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeEach(() => vi.stubEnv("BNB_BINARY", undefined));
afterEach(() => vi.unstubAllEnvs());

let count = 0;
/** A folder with these files. */
function tree(files: Record<string, string>): string {
  const root = join(folder, String(count++));
  for (const [path, text] of Object.entries({ "a.txt": "", ...files })) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}
const manifest = { "package.json": '{ "name": "bitsandbytes-node" }' };
const failure = (root: string): { code: string; message: string } => {
  try {
    loadAddon(root);
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error("it was loaded");
};

describe("a binary that is not there", () => {
  it("in a bundle: the code runs in another folder than the package's", () => {
    for (const root of [tree({}), tree({ "package.json": '{ "name": "my-app" }' })]) {
      const { code, message } = failure(root);
      expect(code).toBe("ERR_BNB_NO_BINARY");
      expect(message).toContain(`this code runs in ${root}, which is not that folder: a bundler has moved it`);
      expect(message).toContain("--external:bitsandbytes-node");
    }
  });

  it("in a clone that was not built", () => {
    const { message } = failure(tree({ ...manifest, "csrc/README.md": "" }));
    expect(message).toContain('there is no native binary in this clone yet: run "npm run build"');
  });

  it("in a package for other platforms, or with its binaries lost", () => {
    const { message } = failure(tree({ ...manifest, "prebuilds/plan9-x64/bitsandbytes.node": "" }));
    expect(message).toContain(`the package has native binaries for plan9-x64, but none for ${platform}`);
    expect(failure(tree(manifest)).message).toContain("there are no native binaries in");
  });

  it("where BNB_BINARY says that it is", () => {
    vi.stubEnv("BNB_BINARY", join(folder, "nowhere.node"));
    expect(failure(tree(manifest)).message).toBe(
      `bitsandbytes-node: BNB_BINARY must name a file, got ${join(folder, "nowhere.node")}, which is not there`,
    );
  });
});

describe("a binary that cannot be loaded", () => {
  it("gives the loader's reason, and the path", () => {
    const path = `prebuilds/${platform}/bitsandbytes.node`;
    const root = tree({ ...manifest, [path]: "this is no library, however long it may be: no header says so" });
    for (const chosen of [undefined, join(root, path)]) {
      vi.stubEnv("BNB_BINARY", chosen);
      const { code, message } = failure(root);
      expect(code).toBe("ERR_BNB_NO_BINARY");
      expect(message).toMatch(/bitsandbytes\.node cannot be loaded: .*(ELF|file|Mach-O|valid)/);
      expect(message).toContain(join(root, path));
    }
  });
});
