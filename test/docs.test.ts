// The guides' commands and snippets run as they stand.
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const blocks = (guide: string, language: string): string[] => {
  const text = readFileSync(join(root, "docs", guide), "utf8");
  return [...text.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, "gs"))].map((match) => match[1] as string);
};

it("finetuning.md: the commands", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-docs-"));
  const commands = blocks("finetuning.md", "sh");
  expect(commands.length).toBe(2);
  const program = `bnb() { "${process.execPath}" "${join(root, "dist", "cli", "main.js")}" "$@"; }\nset -e\n`;
  const { stdout } = await promisify(execFile)("bash", ["-c", program + commands.join("")], { cwd: folder });
  // Both commands that a run names are those of the page.
  expect(stdout).toContain("bnb merge tiny tuned tuned-merged\n");
  expect(stdout).toContain("--4bit --lora tuned\n");
  expect(readdirSync(join(folder, "tuned"))).toEqual(
    expect.arrayContaining(["adapter_config.json", "adapter_model.safetensors", "report.html"]),
  );
  expect(readdirSync(join(folder, "tuned-by-file"))).toContain("checkpoint-6");
  expect(readdirSync(join(folder, "tuned-merged"))).toContain("model.safetensors");
  rmSync(folder, { recursive: true });
});

it("optimizers.md: the snippet", async () => {
  const [code = ""] = blocks("optimizers.md", "js");
  const folder = join(root, "build", "docs");
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "optimizers.mjs"), code);
  const { stdout } = await promisify(execFile)(process.execPath, [join(folder, "optimizers.mjs")], { cwd: root });
  expect(stdout).toBe("uint8\n");
});
