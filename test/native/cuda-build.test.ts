// Whether a build has CUDA kernels: the decision of tools/build/cuda.cmake, on machines made of a few scripts.
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { root } from "../helpers/sources.js";

const folder = mkdtempSync(join(tmpdir(), "bnb-cuda-build-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const which = (name: string) => spawnSync("which", [name], { encoding: "utf8" }).stdout.trim();
const cmake = which("cmake");

interface Machine {
  /** What `nvidia-smi --query-gpu=compute_cap` prints; absent where there is no such program. */
  smi?: string;
  smiStatus?: number;
  /** Whether /proc names a card. */
  card?: boolean;
  /** Makes a program, or says what an nvcc without its headers says. */
  nvcc?: "whole" | "half";
  options?: Record<string, string>;
}

let machines = 0;
/** What the configuration says on such a machine. */
function decide({ smi, smiStatus = 0, card = false, nvcc, options = {} }: Machine): { ok: boolean; text: string } {
  const home = join(folder, String(machines++));
  const program = (name: string, lines: string) => {
    writeFileSync(join(home, "bin", name), `#!/bin/sh\n${lines}\n`);
    chmodSync(join(home, "bin", name), 0o755);
  };
  mkdirSync(join(home, "bin"), { recursive: true });
  mkdirSync(join(home, "proc/driver/nvidia/gpus", card ? "0000:01:00.0" : ""), { recursive: true });
  if (smi !== undefined) program("nvidia-smi", `echo "${smi}"; exit ${smiStatus}`);
  if (nvcc === "whole") program("nvcc", "exit 0");
  if (nvcc === "half")
    program("nvcc", `echo "cc1plus: fatal error: cuda_runtime.h: No such file or directory" >&2; exit 1`);
  const args = Object.entries({ BNB_ROOT: home, ...options }).map(([name, value]) => `-D${name}=${value}`);
  const { status, stdout, stderr } = spawnSync(cmake, [...args, "-P", join(root, "tools/build/cuda.cmake")], {
    cwd: home,
    encoding: "utf8",
    env: { PATH: join(home, "bin"), CUDA_HOME: join(home, "none"), CUDA_PATH: join(home, "none") },
  });
  return { ok: status === 0, text: `${stdout}${stderr}`.replace(/\s+/g, " ").trim() };
}

const why = cmake === "" ? ": skipped, there is no CMake" : "";
describe.skipIf(cmake === "")(`a build from source${why}`, () => {
  it("has CUDA kernels, those of its cards, where a GPU and a toolkit are", () => {
    const smi = "8.6\n9.0\n9.0";
    expect(decide({ smi, nvcc: "whole" })).toEqual({ ok: true, text: "-- cuda on 86 90" });
    expect(decide({ card: true, nvcc: "whole" }).text).toBe("-- cuda on 80 90");
    expect(decide({ smi, nvcc: "whole", options: { BNB_CUDA_ARCHS: "75,80" } }).text).toBe("-- cuda on 75 80");
  });

  it("has none where no GPU is, whatever the toolkit, and says how to have them", () => {
    const off = "-- cuda off (no GPU was found; BNB_CUDA=on builds the kernels all the same)";
    expect(decide({ nvcc: "whole" })).toEqual({ ok: true, text: off });
    const failed = { smi: "NVIDIA-SMI has failed because version 12.2 does not match", smiStatus: 9 };
    expect(decide({ ...failed, nvcc: "whole" }).text).toBe(off);
    expect(decide({ smi: "No devices were found", nvcc: "half" }).text).toBe(off);
    expect(decide({}).text).toBe(off);
  });

  it("does without them, and warns, where the toolkit is missing or half there", () => {
    const half = decide({ smi: "9.0", nvcc: "half" });
    expect(half.ok).toBe(true);
    expect(half.text).toMatch(/^-- cuda off CMake Warning/);
    expect(half.text).toContain("There is a GPU, but its kernels are not built.");
    expect(half.text).toContain("cannot make a program, so the CUDA toolkit is not whole:");
    expect(half.text).toContain("cuda_runtime.h: No such file");
    const missing = decide({ smi: "9.0" });
    expect(missing.ok).toBe(true);
    expect(missing.text).toContain("nvcc was not found: install the CUDA toolkit, or set CUDA_HOME");
  });

  it("does as it is told: BNB_CUDA=on fails where it cannot be", () => {
    const options = { BNB_CUDA: "on" };
    expect(decide({ nvcc: "whole", options }).text).toBe("-- cuda on 80 90");
    expect(decide({ smi: "9.0", nvcc: "half", options }).ok).toBe(false);
    const missing = decide({ options });
    expect(missing.ok).toBe(false);
    expect(missing.text).toContain("BNB_CUDA=on: nvcc was not found");
    expect(decide({ smi: "9.0", nvcc: "whole", options: { BNB_CUDA: "OFF" } }).text).toBe("-- cuda off");
    const wrong = decide({ options: { BNB_CUDA: "yes" } });
    expect([wrong.ok, wrong.text]).toEqual([false, expect.stringContaining("must be on or off, got yes")]);
  });
});
