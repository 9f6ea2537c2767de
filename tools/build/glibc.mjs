// Makes libraries to link with instead of the C library's own, so that what is built on a new Linux loads on an old one:
// node tools/build/glibc.mjs <folder> <C++ compiler> <nm>. They hold no code, only the names of the compiler's libc, libm and
// loader, each in the newest version that the oldest C library has, which newer ones still offer (`pthread_create` of
// GLIBC_2.2.5 beside that of 2.34). Names that came later are missing in them: csrc/core/old_glibc.cc defines those that are
// needed. Prints nothing; test/native/binary.test.ts looks at the result.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The oldest C library that the addon loads with: that of Debian 10 and RHEL 8, which Node 20 asks for as well. */
const floor = [2, 28];

const [folder = "", compiler = "", nm = ""] = process.argv.slice(2);
/** @type {(command: string, ...args: string[]) => string} */
const output = (command, ...args) => execFileSync(command, args, { encoding: "utf8" }).trim();
/** @type {(name: string) => string} */
const fileOf = (name) => output(compiler, `-print-file-name=${name}`);
/** @type {(version: string) => number[]} */
const numbers = (version) => version.slice("GLIBC_".length).split(".").map(Number);
/** @type {(a: number[], b: number[]) => number} */
const compare = (a, b) =>
  a.map((part, i) => part - (b[i] ?? 0)).find((difference) => difference !== 0) ?? a.length - b.length;

/**
 * The names of a library in their newest version up to the floor.
 * @param {string} path
 * @returns {{ name: string, version: string, kind: string }[]}
 */
function symbols(path) {
  const newest = new Map();
  const table = output(nm, "--dynamic", "--defined-only", "--with-symbol-versions", path);
  for (const [, kind, name, version] of table.matchAll(/^[\da-f]+ (\w) ([\w.]+)@@?(GLIBC_[\d.]+)$/gm)) {
    if (kind === undefined || name === undefined || version === undefined || kind === "A") continue;
    const found = newest.get(name);
    if (compare(numbers(version), floor) > 0) continue;
    if (!found || compare(numbers(version), numbers(found.version)) > 0) newest.set(name, { name, version, kind });
  }
  return [...newest.values()];
}

/** @type {(soname: string) => void} */
function makeLibrary(soname) {
  const all = symbols(fileOf(soname));
  const versions = [...new Set(all.map((symbol) => symbol.version))];
  const base = join(folder, soname);
  writeFileSync(`${base}.map`, versions.map((version) => `${version} {};\n`).join(""));
  const text = all.map(({ name, version, kind }, i) => {
    const type = /[BDR]/i.test(kind) ? "object" : "function";
    return `.globl s${i}\n.type s${i}, %${type}\ns${i}: .quad 0\n.size s${i}, 8\n.symver s${i}, ${name}@@${version}\n`;
  });
  writeFileSync(`${base}.s`, `.data\n${text.join("")}.section .note.GNU-stack,"",%progbits\n`);
  const options = ["-shared", "-nostdlib", `-Wl,-soname,${soname}`, `-Wl,--version-script,${base}.map`];
  output(compiler, ...options, "-o", base, `${base}.s`);
}

mkdirSync(folder, { recursive: true });
const loader = /\b(ld-linux[\w.-]+)\]/.exec(output("readelf", "--dynamic", fileOf("libc.so.6")))?.[1] ?? "";
for (const soname of ["libc.so.6", "libm.so.6", loader]) makeLibrary(soname);
// As the C library's own: what -lc and -lm name are scripts of the linker.
const nonshared = fileOf("libc_nonshared.a");
const last = join(folder, loader);
writeFileSync(join(folder, "libc.so"), `GROUP(${join(folder, "libc.so.6")} ${nonshared} AS_NEEDED(${last}))\n`);
writeFileSync(join(folder, "libm.so"), `INPUT(${join(folder, "libm.so.6")})\n`);
