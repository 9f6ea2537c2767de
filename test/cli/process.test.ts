// The program itself: exit codes, Ctrl-C, a disk without room, a reader that is gone, colours.
import { spawn, spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";

const root = mkdtempSync(join(tmpdir(), "bnb-process-"));
afterAll(() => rmSync(root, { recursive: true }));
const model = join(root, "model");
const program = "dist/cli/main.js";
const bnb = (...args: string[]) => spawnSync(process.execPath, [program, ...args], { encoding: "utf8" });
beforeAll(() => {
  expect(bnb("make-model", model, "--device", "cpu")).toMatchObject({ status: 0, stderr: "" });
});

it("ends with 0, 1 or 2, without colours where no terminal is", () => {
  const inspected = bnb("inspect", model);
  expect(inspected).toMatchObject({ status: 0, stderr: "" });
  expect(inspected.stdout).not.toContain("\x1b");
  expect(bnb("inspect", "./nothing")).toMatchObject({ status: 1, stdout: "" });
  expect(bnb("inspect")).toMatchObject({ status: 2, stdout: "" });
});

it("says warnings in a line of its own", () => {
  const warned = join(root, "warned");
  cpSync(model, warned, { recursive: true });
  const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8")) as object;
  const quantization = { load_in_8bit: true, llm_int8_skip_modules: ["q_projj"] };
  writeFileSync(join(warned, "config.json"), JSON.stringify({ ...config, quantization_config: quantization }));
  const { status, stderr } = bnb("estimate", warned);
  expect([status, stderr]).toEqual([0, 'bnb: llmInt8SkipModules: no module matches "q_projj"\n']);
});

it("estimates what a generation takes at its peak", () => {
  const large = join(root, "large");
  const sizes = ["--hidden-size", "256", "--intermediate-size", "1024", "--layers", "4", "--dtype", "float32"];
  expect(bnb("make-model", large, ...sizes, "--device", "cpu")).toMatchObject({ status: 0 });
  const { formats } = JSON.parse(bnb("estimate", large, "--json").stdout) as { formats: { total: number }[] };
  // In a process of its own, whose peak is that of this one text.
  const script = `const { AutoModelForCausalLM, generate, memory } = require(process.argv[1]);
    AutoModelForCausalLM.fromPretrained(process.argv[2]).then(async (model) => {
      for await (const _ of generate(model, new Int32Array(1023), { maxNewTokens: 1, eosTokenId: null }));
      console.log(memory().peakBytes);
    });`;
  const ran = spawnSync(process.execPath, ["-e", script, join(process.cwd(), "dist/index.js"), large], {
    encoding: "utf8",
  });
  expect(formats[0]!.total / Number(ran.stdout)).toBeGreaterThan(0.8);
  expect(formats[0]!.total / Number(ran.stdout)).toBeLessThan(1.25);
});

it("ends with 130 on Ctrl-C", async () => {
  const args = [program, "generate", model, "--prompt", "Hi", "--max-new-tokens", "1000", "--device", "cpu"];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.on("data", (piece) => {
    stderr += piece;
  });
  child.stdout.once("data", () => child.kill("SIGINT"));
  const code = await new Promise((resolve) => child.on("close", resolve));
  expect([code, stderr]).toEqual([130, "bnb generate: stopped\n"]);
});

it("leaves nothing on a disk without room", () => {
  const out = join(root, "full");
  // Beyond this size a write fails, as on a full disk; the signal that comes with it is ignored.
  const script = `process.on("SIGXFSZ", () => {});
    require(${JSON.stringify(join(process.cwd(), program))}).main(process.argv.slice(1)).then((code) => { process.exitCode = code; });`;
  const command = 'ulimit -f 100; exec "$0" -e "$1" quantize "$2" "$3" --device cpu';
  const { status, stderr, stdout } = spawnSync("sh", ["-c", command, process.execPath, script, model, out], {
    encoding: "utf8",
  });
  expect([status, stdout]).toEqual([1, ""]);
  expect(stderr).toBe(
    `bnb quantize: ${join(out, "model.safetensors")}: could not be written: EFBIG: file too large, write\n`,
  );
  expect(existsSync(out)).toBe(false);
  expect(readdirSync(root).filter((name) => name.includes("part"))).toEqual([]);
});

it("leaves the page that was there on a disk without room, and nothing beside it", () => {
  const [text, page] = [join(root, "text.txt"), join(root, "pages", "page.html")];
  writeFileSync(text, "A text to measure.");
  const script = `process.on("SIGXFSZ", () => {});
    require(${JSON.stringify(join(process.cwd(), program))}).main(process.argv.slice(1)).then((code) => { process.exitCode = code; });`;
  const command = 'ulimit -f 1; exec "$0" -e "$1" eval "$2" --text "$3" --html "$4" --formats float --device cpu';
  const evaluate = () =>
    spawnSync("sh", ["-c", command, process.execPath, script, model, text, page], { encoding: "utf8" });
  expect(evaluate()).toMatchObject({
    status: 1,
    stderr: `bnb eval: ${page}: could not be written: EFBIG: file too large, write\n`,
  });
  expect(existsSync(join(root, "pages"))).toBe(false);
  mkdirSync(join(root, "pages"));
  writeFileSync(page, "mine");
  expect(evaluate().status).toBe(1);
  expect([readdirSync(join(root, "pages")), readFileSync(page, "utf8")]).toEqual([["page.html"], "mine"]);
});

it("ends quietly when nobody reads what it prints", () => {
  const command = `"${process.execPath}" ${program} --help; echo "ended with $?" >&2`;
  // The reader is gone before the program writes.
  const { stderr } = spawnSync("sh", ["-c", `{ sleep 0.3; ${command}; } | true`], { encoding: "utf8" });
  expect(stderr).toBe("ended with 141\n");
});

const isLinux = process.platform === "linux";
const why = isLinux ? "" : " (skipped: only Linux has /dev/full)";
it.skipIf(!isLinux)(`says in one line that what it prints cannot be written${why}`, () => {
  for (const [args, redirection, said] of [
    [
      "inspect",
      ">/dev/full",
      "bnb: the standard output could not be written: ENOSPC: no space left on device, write\n",
    ],
    ["generate --prompt Hi --max-new-tokens 2 --device cpu", ">/dev/full", "bnb: the standard output could not be"],
    ["inspect --nonsense", "2>/dev/full", ""],
  ] as const) {
    const [name, ...options] = args.split(" ");
    const command = `"${process.execPath}" ${program} ${name} "${model}" ${options.join(" ")} ${redirection}`;
    const { status, stdout, stderr } = spawnSync("sh", ["-c", command], { encoding: "utf8" });
    expect([status, stdout, stderr.split("\n").length]).toEqual([1, "", said === "" ? 1 : 2]);
    expect(stderr).toContain(said);
  }
});
