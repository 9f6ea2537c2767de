// `bnb info`: what to quote in a bug report.
import { parseArgs } from "node:util";
import { devices, gpuStatus } from "../../tensor/device.js";
import type { Command } from "../command.js";

/** `bnb info` as it is called. */
export const info: Command = {
  help: `Usage: bnb info

Shows the versions of the package and of Node.js, the devices that were found, and the instruction set that the
CPU kernels use (BNB_CPU=base|avx2|avx512 chooses another).
`,
  async run(args, { stdout, version }) {
    parseArgs({ args, options: {} });
    const lines: [name: string, value: string][] = [
      ["bitsandbytes-node", version],
      ["Node.js", `${process.versions.node} (${process.platform}-${process.arch}, Node-API ${process.versions.napi})`],
    ];
    for (const device of devices()) {
      const memory = `${(device.memory / 2 ** 30).toFixed(1)} GiB`;
      const kind =
        device.type === "cpu"
          ? `${device.isa}, ${device.processors} threads`
          : `compute capability ${device.computeCapability}, ${device.processors} multiprocessors`;
      lines.push([String(device), `${device.name}, ${memory}, ${kind}`]);
    }
    const { missing, libraries } = gpuStatus();
    if (missing !== "") lines.push(["GPU", missing]);
    if (libraries !== "") lines.push(["libraries", libraries]);
    const width = Math.max(...lines.map(([name]) => name.length));
    for (const [name, value] of lines) stdout.write(`${name.padEnd(width)}  ${value}\n`);
    return 0;
  },
};
