// The package on old C libraries, which come from the archives of Debian and Ubuntu and are started by their own loader: no
// container, no root. Node 20 itself asks for glibc 2.28; below it, only whether the addon loads is tried.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bionic, bullseye, unpacked } from "../../build/debian.mjs";
import { node } from "./registry.mjs";
import { output, row } from "./rows.mjs";
import { asCommonJs, sum } from "./snippets.mjs";

/** @type {(root: string) => string[]} */
const loader = (root) => [
  join(root, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
  "--library-path",
  ["lib", "usr/lib"].map((path) => join(root, path, "x86_64-linux-gnu")).join(":"),
];

const loads = `#include <dlfcn.h>
#include <stdio.h>
int main(int count, char** arguments) {
  void* library = dlopen(arguments[count - 1], RTLD_LAZY);
  if (!library) puts(dlerror());
  return library ? 0 : 1;
}
`;

/** @param {string} cwd */
export async function tryOldGlibc(cwd) {
  await row("Debian 11 (glibc 2.31)", "Node 20", async () => {
    const [command = "", ...args] = loader(
      await unpacked("glibc-2.31", bullseye, ["libc6", "libstdc++6", "libgcc-s1"]),
    );
    writeFileSync(join(cwd, "old.cjs"), asCommonJs(sum));
    output(command, [...args, node(20).command, "old.cjs"], { cwd });
  });
  await row("Ubuntu 18.04 (glibc 2.27)", "the addon loads", async () => {
    const [command = "", ...args] = loader(await unpacked("glibc-2.27", bionic, ["libc6", "libstdc++6", "libgcc1"]));
    writeFileSync(join(cwd, "loads.c"), loads);
    // As Node.js, which names both.
    const libraries = ["-Wl,--no-as-needed", "-l:libdl.so.2", "-l:libpthread.so.0"];
    const stubs = join(process.cwd(), "build/glibc");
    execFileSync("cc", ["-o", "loads", "loads.c", `-L${stubs}`, ...libraries], { cwd });
    const binary = join(
      "node_modules/bitsandbytes-node/prebuilds",
      `${process.platform}-${process.arch}`,
      "bitsandbytes.node",
    );
    output(command, [...args, "./loads", `./${binary}`], { cwd });
  });
}
