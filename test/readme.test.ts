// Every JavaScript snippet of the README runs as it stands, against the built package under its own name.
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const snippets = [...readme.matchAll(/```js\n(.*?)```/gs)].map((match) => match[1] as string);

describe("README", () => {
  it("has snippets", () => {
    expect(snippets.length).toBeGreaterThanOrEqual(4);
  });

  it.each(snippets.map((code, i) => [code.split("\n")[0], code, i] as const))("runs %s", async (_, code, i) => {
    // Inside the package, its own name resolves to its exports.
    const folder = join(root, "build", "readme");
    mkdirSync(folder, { recursive: true });
    const file = join(folder, `${i}.mjs`);
    writeFileSync(file, code);
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [file], { cwd: root, timeout: 30_000 });
    expect(stderr).toBe("");
    expect(stdout.length).toBeGreaterThan(0);
  });
});
