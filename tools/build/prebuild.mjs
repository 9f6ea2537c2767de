// npm run prebuild [-- linux-x64 linux-arm64]: the binaries of the published package, prebuilds/<platform>-<arch>, by
// prebuildify, which builds in a folder of its own: the clone's build stays where it is. By default for both; see
// prebuilds/README.md.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { arm64Compiler } from "./debian.mjs";
import { allArchs, published } from "./targets.mjs";

// It has no types.
const prebuildify = createRequire(import.meta.url)("prebuildify");
const host = `${process.platform}-${process.arch}`;
const known = [...new Set([host, ...(host === "linux-x64" ? published : [])])];
const named = process.argv.slice(2);
const targets = named.length > 0 ? named : known;
const wrong = targets.find((target) => !known.includes(target));
if (wrong) {
  console.error(`prebuild: a target must be ${known.join(" or ")} on this machine, got ${wrong}`);
  process.exit(1);
}

for (const target of targets) {
  const [platform, arch] = target.split("-");
  const folder = resolve("build-prebuild", target);
  const output = join("prebuilds", target);
  mkdirSync(folder, { recursive: true });
  rmSync(output, { recursive: true, force: true });
  let stripBin = "strip";
  const gpu = target === "linux-x64";
  process.env.BNB_CUDA ??= gpu ? "on" : "off";
  const cuda = process.env.BNB_CUDA;
  if (!gpu) process.env.BNB_CUDA = "off";
  // Code for each GPU, and for later ones what the driver compiles.
  process.env.BNB_CUDA_ARCHS ??= allArchs.map((arch, i) => (i + 1 < allArchs.length ? `${arch}-real` : arch)).join(";");
  if (target !== host) {
    const { prefix, compiler } = await arm64Compiler();
    process.env.BNB_CROSS_PREFIX = prefix;
    process.env.BNB_CROSS_COMPILER = compiler;
    stripBin = `${prefix}strip`;
  }
  const options = { napi: true, strip: true, stripBin, platform, arch, name: "bitsandbytes", quiet: false };
  await promisify(prebuildify)({
    ...options,
    cwd: folder,
    out: resolve("."),
    nodeGyp: resolve("tools/build/native.mjs"),
    targets: [],
  });
  process.env.BNB_CUDA = cuda;
  const bytes = readFileSync(join(output, "bitsandbytes.node"));
  const hash = createHash("sha256").update(bytes).digest("hex");
  console.log(`${output}/bitsandbytes.node: ${(bytes.length / 1e6).toFixed(1)} MB, SHA-256 ${hash}`);
}
