// Compiles src to dist. dist/package.json marks the output as CommonJS and, written last, dates the build.
import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, existsSync, rmSync, utimesSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
const { status } = spawnSync("node_modules/.bin/tsc", ["-p", "tsconfig.build.json"], { stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);
const asTheyAre = ["hub/tokenizer-worker.cjs", "hub/grammar-worker.cjs", "serve/page.html"];
for (const file of asTheyAre) copyFileSync(`src/${file}`, `dist/${file}`);
copyFileSync("src/package.json", "dist/package.json");
utimesSync("dist/package.json", new Date(), new Date());
if (existsSync("dist/cli/main.js")) chmodSync("dist/cli/main.js", 0o755);
