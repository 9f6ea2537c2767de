// Debian packages unpacked into a folder of the clone, which needs no root and changes nothing of the machine: compilers for
// another processor, an emulator of it, and old C libraries. They come from the archive that the machine's apt uses.
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { gunzipSync } from "node:zlib";

/** Debian's archive as apt has it; any release of it can be asked for. */
function archive() {
  const lines = spawnSync("apt-get", ["indextargets", "--format", "$(REPO_URI) $(ORIGIN)"], { encoding: "utf8" });
  const found = /^(\S+\/debian)\/? Debian$/m.exec(lines.stdout ?? "")?.[1];
  if (!found)
    throw new Error(
      "no archive of Debian is known to this machine's apt: is this Debian, and did `apt-get update` run?",
    );
  return found;
}

/** @type {(url: string) => Promise<Buffer>} */
async function download(url) {
  const response = await fetch(url).catch((cause) => {
    throw new Error(`${url} cannot be reached: ${cause.cause?.message ?? cause.message}`);
  });
  if (!response.ok) throw new Error(`${url}: the server answers ${response.status}`);
  return Buffer.from(await response.arrayBuffer());
}

/** The packages that a program of this machine needs beside its own: names that are installed or have no file are left out. */
const crossCompiler = [
  ...["binutils-aarch64-linux-gnu", "cpp-12-aarch64-linux-gnu", "gcc-12-aarch64-linux-gnu", "g++-12-aarch64-linux-gnu"],
  ...["libc6-arm64-cross", "libc6-dev-arm64-cross", "linux-libc-dev-arm64-cross", "libgcc-s1-arm64-cross"],
  ...["libgcc-12-dev-arm64-cross", "libstdc++6-arm64-cross", "libstdc++-12-dev-arm64-cross", "libatomic1-arm64-cross"],
  ...["libbinutils", "libisl23", "libmpc3", "libmpfr6", "libgmp10", "libjansson4", "libzstd1", "zlib1g"],
];

/**
 * Unpacks packages of a release for amd64 into build-tools/<name>, once, and gives the folder.
 * @param {string} name
 * @param {string} release
 * @param {string[]} packages
 */
export async function unpacked(name, release, packages) {
  const folder = resolve("build-tools", name);
  if (existsSync(folder)) return folder;
  if (spawnSync("dpkg-deb", ["--version"]).error)
    throw new Error(`dpkg-deb is needed to unpack ${packages[0]}: install dpkg`);
  const from = archive();
  const index = await download(`${from}/dists/${release}/main/binary-amd64/Packages.gz`);
  const entries = gunzipSync(index).toString().split("\n\n");
  const half = `${folder}.half`;
  rmSync(half, { recursive: true, force: true });
  mkdirSync(half, { recursive: true });
  for (const wanted of packages) {
    const entry = entries.find((text) => text.startsWith(`Package: ${wanted}\n`));
    if (!entry) throw new Error(`Debian has no package ${wanted} in ${release}`);
    /** @type {(key: string) => string} */
    const field = (key) => new RegExp(`^${key}: (.*)$`, "m").exec(entry)?.[1] ?? "";
    const bytes = await download(`${from}/${field("Filename")}`);
    const hash = createHash("sha256").update(bytes).digest("hex");
    if (hash !== field("SHA256")) throw new Error(`${wanted}: its SHA-256 must be ${field("SHA256")}, got ${hash}`);
    writeFileSync(join(half, "package.deb"), bytes);
    execFileSync("dpkg-deb", ["-x", join(half, "package.deb"), half]);
  }
  rmSync(join(half, "package.deb"));
  renameSync(half, folder);
  return folder;
}

/** @typedef {{ prefix: string, compiler: string, sysroot: string }} Arm64 */

/**
 * GCC for arm64: the machine's, or Debian's unpacked. `prefix` begins the names of its programs; `sysroot` has the C library.
 * @returns {Promise<Arm64>}
 */
export async function arm64Compiler() {
  const installed = "aarch64-linux-gnu-g++";
  if (!spawnSync(installed, ["--version"]).error) {
    return { prefix: "aarch64-linux-gnu-", compiler: installed, sysroot: "/usr/aarch64-linux-gnu" };
  }
  const folder = await unpacked("gcc-arm64", "bookworm", crossCompiler);
  const bin = join(folder, "usr/bin");
  // A script of the linker with the paths of an installed package.
  const script = join(folder, "usr/aarch64-linux-gnu/lib/libc.so");
  writeFileSync(script, readFileSync(script, "utf8").replace(/ \/usr\/aarch64-linux-gnu\/lib\//g, " "));
  // Its programs need libraries that may not be installed; those of the machine come after them.
  const libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map((path) => join(folder, path));
  process.env.LD_LIBRARY_PATH = [...libraries, process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
  const compiler = join(bin, "aarch64-linux-gnu-g++-12");
  return { prefix: join(bin, "aarch64-linux-gnu-"), compiler, sysroot: join(folder, "usr/aarch64-linux-gnu") };
}

/** The emulator of arm64: the machine's, or Debian's unpacked. */
export async function arm64Emulator() {
  for (const name of ["qemu-aarch64-static", "qemu-aarch64"]) if (!spawnSync(name, ["--version"]).error) return name;
  return join(await unpacked("qemu", "bookworm", ["qemu-user-static"]), "usr/bin/qemu-aarch64-static");
}
