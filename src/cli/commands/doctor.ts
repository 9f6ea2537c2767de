// `bnb doctor`: what to quote in a bug report, and whether each device computes what it should.
import { access, constants } from "node:fs/promises";
import { freemem, homedir, totalmem } from "node:os";
import { dirname } from "node:path";
import { hubSettings } from "../../hub/cache.js";
import { dequantize4bit, quantize4bit } from "../../ops/index.js";
import { tensor } from "../../tensor/create.js";
import type { Device } from "../../tensor/device.js";
import { devices, gpuStatus } from "../../tensor/device.js";
import { tidy } from "../../tensor/scope.js";
import { command } from "../command.js";
import { bytes } from "../terminal.js";

interface Check {
  name: string;
  holds: boolean;
  found: string;
}

/** `bnb doctor` as it is called. */
export const doctor = command({
  about: `Shows the versions of the package and of Node.js, the devices that were found, the instruction set that the CPU
kernels use (BNB_CPU=base|avx2|avx_vnni|avx512 chooses another) and where models of the hub are kept, and computes
something on each device. Exits with 1 when something does not work.`,
  options: {},
  async run({ version, terminal }) {
    const { node, napi } = process.versions;
    const { missing, libraries } = gpuStatus();
    const { cache, endpoint, offline, token } = await hubSettings();
    const hub = { cache, endpoint, offline, hasToken: token !== null };
    const checks: Check[] = [];
    for (const device of devices()) checks.push(await checkDevice(device));
    checks.push(await checkCache(cache));

    const lines: [name: string, value: string][] = [
      ["bitsandbytes-node", version],
      ["Node.js", `${node} (${process.platform}-${process.arch}, Node-API ${napi})`],
      ["memory", `${bytes(freemem())} free of ${bytes(totalmem())}`],
      ...devices().map((device): [string, string] => [String(device), describe(device)]),
    ];
    if (missing !== "") lines.push(["GPU", missing]);
    if (libraries !== "") lines.push(["libraries", libraries]);
    const access = `${offline ? "offline" : endpoint}, ${token === null ? "no token" : "with a token"}`;
    lines.push(["hub", `${shown(cache)} (${access})`]);
    const width = Math.max(...lines.map(([name]) => name.length));
    for (const [name, value] of lines) terminal.line(`${name.padEnd(width)}  ${value}`);
    terminal.line();
    for (const { name, holds, found } of checks) {
      terminal.write(holds ? "✓" : "✗", holds ? "green" : "red");
      terminal.line(` ${name}: ${found}`);
    }
    return {
      json: {
        version,
        node,
        platform: `${process.platform}-${process.arch}`,
        freeMemory: freemem(),
        totalMemory: totalmem(),
        devices: devices().map((device) => ({
          device: String(device),
          name: device.name,
          memory: device.memory,
          processors: device.processors,
          ...(device.type === "cpu" ? { isa: device.isa } : { computeCapability: device.computeCapability }),
        })),
        missing,
        libraries,
        hub,
        checks,
      },
      code: checks.every(({ holds }) => holds) ? 0 : 1,
    };
  },
});

function describe({ type, name, memory, isa, processors, computeCapability }: Device): string {
  const kind =
    type === "cpu"
      ? `${isa}, ${processors} threads`
      : `compute capability ${computeCapability}, ${processors} multiprocessors`;
  return `${name}, ${bytes(memory)}, ${kind}`;
}

/** The largest value of a block and its negative are values of NF4: they come back to the bit. */
async function checkDevice(device: Device): Promise<Check> {
  const name = `${device} computes`;
  try {
    const back = tidy(() => {
      const [codes, state] = quantize4bit(
        tensor(
          Float32Array.from({ length: 64 }, (_, i) => (i % 2 ? 1 : -1)),
          { device },
        ),
        {
          quantType: "nf4",
          compressStatistics: false,
        },
      );
      return dequantize4bit(codes, { quantState: state });
    });
    const values = await back.data();
    back.dispose();
    const holds = values.every((value, i) => value === (i % 2 ? 1 : -1));
    return { name, holds, found: holds ? "NF4 there and back" : "NF4 there and back gives other values" };
  } catch (error) {
    return { name, holds: false, found: (error as Error).message };
  }
}

/** A path as people write it. */
const shown = (path: string): string => (path.startsWith(homedir()) ? `~${path.slice(homedir().length)}` : path);

/** Whether models can be put where they are looked for. */
async function checkCache(cache: string): Promise<Check> {
  const name = "the cache of models can be written";
  for (let folder = cache; ; folder = dirname(folder)) {
    try {
      await access(folder, constants.W_OK);
      return { name, holds: true, found: shown(cache) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT" && dirname(folder) !== folder) continue;
      return { name, holds: false, found: `${folder} is not writable: set HF_HOME to a folder that is` };
    }
  }
}
