// The GPU bundle's run.sh, in a folder of stand-ins: what it runs, in which order and time, and what it says.
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { read } from "../helpers/sources.js";

const home = mkdtempSync(join(tmpdir(), "bnb-run-"));
afterAll(() => rmSync(home, { recursive: true, force: true }));
const calls = join(home, "calls.txt");

function put(path: string, text: string, mode = 0o644): void {
  mkdirSync(dirname(join(home, path)), { recursive: true });
  writeFileSync(join(home, path), text);
  chmodSync(join(home, path), mode);
}

// Node starts slowly: a script stands in for it, which writes down how it was called, a word a line, and ends as a
// variable says. The program that lists devices runs in Node itself where a test wants it.
const node = `#!/bin/sh
if [ "$1" = -e ]; then
  [ -z "$REAL_NODE" ] || exec "$REAL_NODE" "$@"
  case $2 in *gpuStatus*) echo "cuda:0  a card" ;; esac
  exit 0
fi
{ echo "cublaslt=$BNB_CUBLASLT"; for word; do echo "$word"; done; echo end; } >>"${calls}"
case $* in *tests.mjs*) exit "\${FAKE_TESTS:-0}" ;; esac`;

put("run.sh", read("tools/gpu-bundle/run.sh"), 0o755);
put("manifest.json", "{}");
put("bitsandbytes.node", "", 0o755);
put("node", node, 0o755);
put("app.tar", ""); // the mark of an app that was unpacked
put("app/package.json", '{ "type": "commonjs" }');
put(
  "app/dist/index.js",
  `exports.gpuStatus = () => ({ missing: "", libraries: "" });
  exports.devices = () => [{ toString: () => "cuda:0", name: "a card", memory: 8e10, isa: "", computeCapability: 9 }];
  exports.setDefaultDevice = () => {};
  exports.ones = () => ({ add: () => ({ data: async () => [] }) });`,
);
put("bin/ldconfig", "#!/bin/sh\n", 0o755);
put(
  "bin/compute-sanitizer",
  `#!/bin/sh\n[ -z "$REFUSE" ] || { echo "Device not supported"; exit 1; }\nfor word; do case $word in */node) exec "$@" ;; esac; shift; done\n`,
  0o755,
);

interface Call {
  name: string;
  args: string[];
  cublaslt: string;
}
function run(args: string[], env: Record<string, string> = {}): { status: number | null; text: string; calls: Call[] } {
  rmSync(calls, { force: true });
  const { status, stdout, stderr } = spawnSync(join(home, "run.sh"), args, {
    encoding: "utf8",
    env: { HOME: home, PATH: `${join(home, "bin")}:${process.env["PATH"]}`, PYTHONPATH: join(home, "python"), ...env },
  });
  const text = existsSync(calls) ? readFileSync(calls, "utf8") : "";
  const made = text
    .split("\nend\n")
    .filter(Boolean)
    .map((call) => {
      const [cublaslt = "", ...words] = call.split("\n");
      const name = words.some((word) => word === "tests.mjs") ? "tests" : "bench";
      return { name, args: words, cublaslt: cublaslt.slice("cublaslt=".length) };
    });
  return { status, text: `${stdout}${stderr}`, calls: made };
}
const option = (call: Call, name: string) => call.args[call.args.lastIndexOf(name) + 1];

describe("run.sh", { timeout: 300_000 }, () => {
  beforeEach(() => rmSync(join(home, "python"), { recursive: true, force: true }));

  it("all runs check, a memcheck and the quick benchmarks, and keeps to its budget", () => {
    const { status, text, calls } = run(["all", "--budget", "780"], { REAL_NODE: process.execPath });
    expect(status).toBe(0);
    expect(calls.map(({ name }) => name)).toEqual(["tests", "tests", "bench"]);
    const [check, sanitize, bench] = calls as [Call, Call, Call];
    expect([option(check, "--timeout"), Number(option(check, "--budget"))]).toEqual(["60", expect.closeTo(429, -1)]);
    expect(option(sanitize, "--wrap")).toMatch(/compute-sanitizer --tool memcheck --error-exitcode 99/);
    expect(sanitize.args.slice(-5, -2)).toEqual(["ops/attention", "ops/linear-4bit", "optim/optimizer"]);
    // The stand-ins left all of their time.
    expect(Number(option(sanitize, "--budget"))).toBeGreaterThan(200);
    expect(Number(option(bench, "--budget"))).toBeGreaterThan(600);
    expect(bench.args).toContain("--quick");
    for (const part of ["check", "sanitize", "bench"]) expect(text).toMatch(new RegExp(`^${part}  ok  \\d+ s$`, "m"));
  });

  it("all goes on after a failure, and tells it from what was not run", () => {
    const failed = run(["all"], { FAKE_TESTS: "1" });
    expect([failed.status, failed.calls.length]).toEqual([1, 3]);
    expect(failed.text).toMatch(/^check {2}FAILED.*\nsanitize {2}FAILED.*\nbench {2}ok/m);
    const late = run(["all"], { FAKE_TESTS: "3" });
    expect([late.status, late.calls.length]).toEqual([3, 3]);
    expect(late.text).toMatch(/^check {2}NOT RUN TO THE END/m);
  });

  it("says once that the sanitizer is refused, and gives the rest its time", () => {
    const { status, text, calls } = run(["all"], { REFUSE: "1" });
    expect([status, calls.map(({ name }) => name)]).toEqual([1, ["tests", "bench"]]);
    expect(text).toContain("compute-sanitizer cannot run one op here:\nDevice not supported");
  });

  it("hands options and parts on", () => {
    const { calls } = run(["sanitize", "racecheck", "--budget", "30", "ops/softmax"]);
    expect(calls).toHaveLength(1);
    expect(option(calls[0]!, "--budget")).toBe("30");
    expect(calls[0]!.args.at(-1)).toBe("ops/softmax");
    expect(run(["check", "--timeout", "9"], { FAKE_TESTS: "3" }).status).toBe(3);
    expect(run(["nothing"]).text).toMatch(/run\.sh all \[--budget SECONDS\]/);
  });

  it("finds the cuBLASLt of torch, unless the system or the user has one", () => {
    expect(run(["bench"]).calls[0]?.cublaslt).toBe("");
    const torch = "python/nvidia/cu13/lib/libcublasLt.so.13";
    put("python/nvidia/cublas/lib/libcublasLt.so.12", "");
    put(torch, "");
    expect(run(["bench"]).calls[0]?.cublaslt).toBe(join(home, torch));
    expect(run(["bench"], { BNB_CUBLASLT: "0" }).calls[0]?.cublaslt).toBe("0");
    put("bin/ldconfig", "#!/bin/sh\necho 'libcublasLt.so.12 (libc6,x86-64) => /usr/lib/libcublasLt.so.12'\n", 0o755);
    expect(run(["bench"]).calls[0]?.cublaslt).toBe("");
  });
});
