// Whether a tarball made now would be whole: run by npm run pack, and by npm before it packs where scripts are on.
import { existsSync } from "node:fs";
import { published } from "./targets.mjs";

const missing = published.map((target) => `prebuilds/${target}/bitsandbytes.node`).filter((path) => !existsSync(path));
if (!existsSync("dist/index.js")) missing.push("dist/index.js");
if (missing.length > 0) {
  console.error(`the package lacks ${missing.join(", ")}: run "npm run prebuild" and "npm run build:ts" first`);
  process.exit(1);
}
