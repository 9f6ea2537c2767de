// The package on an old C library, which comes from Debian's archive and is started by its own loader: no container, no root.
// Node 20 itself asks for glibc 2.28; test/native/binary.test.ts holds the addon to that by the versions that it names.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { unpacked } from "../../build/debian.mjs";
import { node } from "./registry.mjs";
import { output, row } from "./rows.mjs";
import { asCommonJs, sum } from "./snippets.mjs";

/** @type {(root: string) => string[]} */
const loader = (root) => [
  join(root, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
  "--library-path",
  ["lib", "usr/lib"].map((path) => join(root, path, "x86_64-linux-gnu")).join(":"),
];

/** @param {string} cwd */
export async function tryOldGlibc(cwd) {
  await row("Debian 11 (glibc 2.31)", "Node 20", async () => {
    const [command = "", ...args] = loader(
      await unpacked("glibc-2.31", "bullseye", ["libc6", "libstdc++6", "libgcc-s1"]),
    );
    writeFileSync(join(cwd, "old.cjs"), asCommonJs(sum));
    output(command, [...args, node(20).command, "old.cjs"], { cwd });
  });
}
