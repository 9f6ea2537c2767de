// The tarball of the package, and empty projects that have it installed.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { output } from "./rows.mjs";

/**
 * Packs the clone into a folder and gives the tarball's path.
 * @param {string} folder
 */
export function pack(folder) {
  const args = ["pack", "--ignore-scripts", "--silent", "--pack-destination", folder];
  return join(folder, output("npm", args, { cwd: process.cwd() }).split("\n").at(-1) ?? "");
}

/**
 * A project in a folder with packages, the tarball's among them, installed by an npm with no script run. Gives its path.
 * @param {string} folder
 * @param {string} name
 * @param {string[]} npm
 * @param {string[]} packages
 */
export function install(folder, name, [command = "", ...args], ...packages) {
  const cwd = join(folder, name);
  mkdirSync(cwd);
  writeFileSync(join(cwd, "package.json"), '{ "name": "user", "version": "1.0.0", "private": true }\n');
  const options = ["install", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"];
  output(command, [...args, ...options, ...packages], { cwd });
  return cwd;
}
