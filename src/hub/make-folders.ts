// Folders, made with those above them. The recursion of Node's own mkdir does not end where the system keeps refusing, as
// in /proc, so nothing here uses it.
import { mkdir, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { exists } from "./cache.js";

/** Makes a folder and those above it; gives those that were not there. Rejects with the error of the system. */
export async function makeFolders(path: string): Promise<string[]> {
  const missing: string[] = [];
  for (let at = path; !(await exists(at)); at = dirname(at)) missing.unshift(at);
  for (const folder of missing) {
    await mkdir(folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  }
  // What is there may be a file: the system says so.
  if (missing.length === 0 && !(await stat(path)).isDirectory()) await mkdir(path);
  return missing;
}
