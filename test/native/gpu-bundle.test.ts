// The GPU bundle: its stand-in for vitest has everything that the tests ask of vitest, and its test command survives
// what may happen to a file.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { filesIn, read, root, withoutComments } from "../helpers/sources.js";

const standIn = withoutComments(read("tools/gpu-bundle/vitest.mjs"));
// Tests of the repository itself do not travel.
const bundled = filesIn("test", ".ts").filter((path) => !path.startsWith("test/native/"));

it("exports what is imported", () => {
  const lists = [...standIn.matchAll(/^export \{([^}]+)\}/gm)].flatMap((match) => match[1]!.split(","));
  const single = [...standIn.matchAll(/^export (?:const|async function|function) (\w+)/gm)].map((match) => match[1]!);
  const exported = new Set([...lists.map((name) => name.trim()), ...single]);
  const imports = bundled.flatMap((path) =>
    [...read(path).matchAll(/^import \{([^}]+)\} from "vitest"/gm)].flatMap((match) => match[1]!.split(",")),
  );
  const names = new Set(imports.map((name) => name.trim()));
  expect(names.size).toBeGreaterThan(2);
  expect([...names].filter((name) => !exported.has(name))).toEqual([]);
});

it("has the functions of vi that are called", () => {
  const body = /export const vi = \{([\s\S]*?)\n\};/.exec(standIn)![1]!;
  const has = new Set([...body.matchAll(/^ {2}(\w+)[,(]/gm)].map((match) => match[1]!));
  const calls = bundled.flatMap((path) =>
    [...withoutComments(read(path)).matchAll(/\bvi\.(\w+)\(/g)].map((m) => m[1]!),
  );
  expect([...new Set(calls)].filter((name) => !has.has(name))).toEqual([]);
});

// Side by side, because most of the time is that of files that hang.
describe.concurrent("the test command", { timeout: 300_000 }, () => {
  const app = mkdtempSync(join(tmpdir(), "bnb-bundle-"));
  afterAll(() => rmSync(app, { recursive: true, force: true }));
  const put = (path: string, text: string) => {
    mkdirSync(dirname(join(app, path)), { recursive: true });
    writeFileSync(join(app, path), text);
  };
  // What a file has, in seconds, before it counts as hanging: by what starting one takes here and now.
  let patience = 0;
  beforeAll(async () => {
    put("package.json", '{ "type": "module" }');
    put("tests.mjs", read("tools/gpu-bundle/tests.mjs"));
    put("node_modules/vitest/index.mjs", read("tools/gpu-bundle/vitest.mjs"));
    put("node_modules/vitest/package.json", '{ "exports": "./index.mjs" }');
    symlinkSync(join(root, "node_modules/@vitest"), join(app, "node_modules/@vitest"));
    put("test/setup.js", "");
    const head = 'import { expect, it } from "vitest";\n';
    put("test/ops/good.test.js", `${head}it("adds", () => expect(1 + 1).toBe(2));\nit.skip("not now", () => {});`);
    put("test/ops/bad.test.js", `${head}it("is right", () => {});\nit("is wrong", () => expect(1).toBe(2));`);
    put("test/ops/hang.test.js", `${head}it("ends", () => {});\nit("never ends", () => { for (;;); });`);
    put("test/ops/waits.test.js", `${head}it("waits", () => new Promise(() => {}));\nit("does not", () => {});`);
    put("test/killed.test.js", `${head}it("dies", () => { process.kill(process.pid, "SIGKILL"); });`);
    put("test/broken.test.js", `import "./nowhere.js";`);
    const began = performance.now();
    await run("good");
    patience = Math.ceil(3 + (8 * (performance.now() - began)) / 1000);
  });

  interface Report {
    passed: number;
    failed: number;
    skipped: number;
    notRun: string[];
    files: { file: string; failed: number; failures: { name: string; message: string }[] }[];
  }
  let runs = 0;
  const run = async (...args: string[]) => {
    const path = join(app, `report-${runs++}.json`);
    const child = spawn(process.execPath, ["tests.mjs", "--report", path, ...args], { cwd: app });
    let stdout = "";
    child.stdout.on("data", (chunk) => (stdout += chunk));
    const [status] = (await once(child, "close")) as [number | null];
    const report = JSON.parse(readFileSync(path, "utf8")) as Report;
    return { status, last: stdout.trim().split("\n").at(-1)!, stdout, report };
  };
  const failureOf = ({ report }: Awaited<ReturnType<typeof run>>, file: string) =>
    report.files.find((result) => result.file === file)?.failures[0];

  it("counts what passes, fails and is skipped", async ({ expect }) => {
    const { status, last, report } = await run("good", "bad.test");
    expect([status, last]).toEqual([1, expect.stringMatching(/^2 passed, 1 failed, 1 skipped, 2 files, /)]);
    expect(report).toMatchObject({ passed: 2, failed: 1, skipped: 1, notRun: [] });
    expect(report.files.flatMap(({ failures }) => failures.map(({ name }) => name))).toEqual([
      "test/ops/bad.test.js > is wrong",
    ]);
    expect((await run("good")).status).toBe(0);
    expect((await run("nothing-like-it")).status).toBe(1);
  });

  it("a file that hangs, dies or does not load costs itself alone, and is named with the test", async ({ expect }) => {
    const all = await run("--timeout", `${patience}`, "--jobs", "6");
    expect(all.status).toBe(1);
    expect(all.report).toMatchObject({ passed: 3, failed: 5, skipped: 1, notRun: [] });
    expect(failureOf(all, "ops/hang.test.js")?.name).toBe(
      `stopped after ${patience} s in "test/ops/hang.test.js > never ends"`,
    );
    expect(failureOf(all, "killed.test.js")?.name).toBe('ended with SIGKILL in "test/killed.test.js > dies"');
    expect(failureOf(all, "ops/waits.test.js")?.message).toContain(`timed out in ${patience * 500}ms`);
    expect(failureOf(all, "broken.test.js")?.message).toMatch(/nowhere/);
    expect(all.report.files).toHaveLength(6);
  });

  it("stops when the time is up, says what was not run, and leaves a report", async ({ expect }) => {
    const { status, stdout, last, report } = await run("--budget", `${patience}`, "--jobs", "1", "good", "hang", "bad");
    expect([status, last]).toEqual([3, expect.stringMatching(/^1 passed, 0 failed, 1 skipped, 1 of 3 files, /)]);
    expect(report.notRun).toEqual(["ops/hang.test.js", "ops/bad.test.js"]);
    expect(stdout).toContain("NOT RUN TO THE END, the time was up: ops/hang.test.js, ops/bad.test.js");
  });

  it("runs a file under a command, and ends what that command started", async ({ expect }) => {
    put(
      "sanitizer.sh",
      '#!/bin/sh\necho "$@" >>wrapped.txt\n"$@"\nstatus=$?\n[ $status -eq 0 ] || exit $status\nexit 99\n',
    );
    const found = await run("--wrap", "sh sanitizer.sh", "good");
    expect(failureOf(found, "ops/good.test.js")?.name).toBe("ended with 99");
    const stopped = await run("--wrap", "sh sanitizer.sh", "--timeout", `${patience + 1}`, "hang");
    expect(failureOf(stopped, "ops/hang.test.js")?.name).toMatch(/^stopped after \d+ s in .*never ends"$/);
    const left = spawnSync("pgrep", ["-f", `${app}/tests.mjs --one .* --timeout ${patience + 1} `], {
      encoding: "utf8",
    }).stdout;
    expect(left).toBe("");
  });
});
