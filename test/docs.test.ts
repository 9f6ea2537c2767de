// The guides' commands and snippets run as they stand.
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { bnb } from "./helpers/bnb.js";

const root = join(import.meta.dirname, "..");
const blocks = (guide: string, language: string): string[] => {
  const text = readFileSync(join(root, "docs", guide), "utf8");
  return [...text.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, "gs"))].map((match) => match[1] as string);
};

it("finetuning.md: the commands", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-docs-"));
  const commands = blocks("finetuning.md", "sh");
  expect(commands.length).toBe(3);
  const program = `bnb() { "${process.execPath}" "${join(root, "dist", "cli", "main.js")}" "$@"; }\nset -e\n`;
  const { stdout } = await promisify(execFile)("bash", ["-c", program + commands.join("")], { cwd: folder });
  // Both commands that a run names are those of the page.
  expect(stdout).toContain("bnb merge tiny tuned tuned-merged\n");
  expect(stdout).toContain("--4bit --lora tuned\n");
  expect(readdirSync(join(folder, "tuned"))).toEqual(
    expect.arrayContaining(["adapter_config.json", "adapter_model.safetensors", "report.html"]),
  );
  expect(stdout).toMatch(/step 4: evaluation .* of the better answers preferred/);
  expect(readdirSync(join(folder, "tuned-by-file"))).toContain("checkpoint-6");
  expect(readdirSync(join(folder, "tuned-merged"))).toContain("model.safetensors");
  rmSync(folder, { recursive: true });
});

it.each([
  ["optimizers.md", "uint8\n"],
  ["data.md", "true\n"],
])("%s: the snippet", async (guide, printed) => {
  const [code = ""] = blocks(guide, "js");
  const folder = join(root, "build", "docs", guide);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "snippet.mjs"), code);
  const { stdout } = await promisify(execFile)(process.execPath, [join(folder, "snippet.mjs")], { cwd: folder });
  expect(stdout).toBe(printed);
});

describe("from-python.md", () => {
  const snippets = blocks("from-python.md", "js");
  const folder = join(root, "build", "docs", "from-python");
  beforeAll(async () => {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    const sizes = ["--hidden-size", "64", "--intermediate-size", "96", "--positions", "512"];
    expect(await bnb("make-model", join(folder, "tiny"), ...sizes, "--device", "cpu")).toMatchObject({ code: 0 });
    const messages = [
      { role: "user", content: "Which color?" },
      { role: "assistant", content: "Blue." },
    ];
    writeFileSync(join(folder, "chat.jsonl"), `${JSON.stringify({ messages })}\n`);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it("has a snippet for each of Python's", () => {
    expect(snippets.length).toBe(blocks("from-python.md", "python").length);
  });

  // In their order: a later one may use what an earlier one has saved. Inside the package its own name is known.
  it.each(snippets.map((code, i) => [code, i] as const))("runs %#", async (code, i) => {
    const file = join(folder, `${i}.mjs`);
    writeFileSync(file, code.replaceAll('"Qwen/Qwen3-0.6B"', '"./tiny"'));
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [file], { cwd: folder });
    expect(stderr).toBe("");
    expect(stdout.length).toBeGreaterThan(0);
  });
});
