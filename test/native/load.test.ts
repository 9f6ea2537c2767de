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
    const { message } = failure(tree({ ...manifest, "package-lock.json": "" }));
    expect(message).toContain('there is no native binary in this clone yet: run "npm run build"');
  });

  it("in a package for other platforms, or with its binaries lost", () => {
    const { message } = failure(tree({ ...manifest, "prebuilds/plan9-x64/bitsandbytes.node": "" }));
    expect(message).toContain(`the package has native binaries for plan9-x64, but none for ${platform}`);
    expect(message).toContain('"npx bnb build" makes one from source');
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
  const path = `prebuilds/${platform}/bitsandbytes.node`;
  /** The message for a file that begins with these bytes. */
  const refused = (...bytes: number[]): string => {
    const root = tree({ ...manifest, [path]: "" });
    writeFileSync(join(root, path), Buffer.concat([Buffer.from(bytes), Buffer.alloc(100)]));
    const { code, message } = failure(root);
    expect(code).toBe("ERR_BNB_NO_BINARY");
    expect(message).toContain(`${join(root, path)} cannot be loaded: `);
    return message;
  };
  /** The first 20 bytes of a Linux library for a machine. */
  const elf = (machine: number): number[] => [
    0x7f,
    0x45,
    0x4c,
    0x46,
    2,
    1,
    1,
    0,
    ...Array<number>(8).fill(0),
    3,
    0,
    machine,
    0,
  ];

  it("is damaged: no library begins so", () => {
    expect(refused()).toContain("it is damaged, its first bytes are those of no library: install the package again");
    const root = tree({ ...manifest, [path]: "this is no library, however long it may be: no header says so" });
    vi.stubEnv("BNB_BINARY", join(root, path));
    expect(failure(root).message).toContain(`${join(root, path)} cannot be loaded: it is damaged`);
  });

  it("is another platform's", () => {
    expect(refused(0x4d, 0x5a)).toMatch(
      process.platform === "win32" ? /./ : `it is a library for win32, and this is ${platform}`,
    );
    expect(refused(...elf(243))).toContain(`it is a library for linux-riscv64, and this is ${platform}`);
  });

  it.runIf(platform === "linux-x64")("is cut off: in the system's words", () => {
    expect(refused(...elf(62))).toMatch(/cannot be loaded: .*(ELF|file)/);
  });
});
