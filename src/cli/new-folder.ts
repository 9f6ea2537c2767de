// Where a command is to write: found unusable before the work, not after it.
import { access, constants, readdir, realpath, stat, writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { Replacement, replaceFiles } from "../hub/replace-files.js";
import { BnbError } from "../tensor/errors.js";
import type { OptionSpec } from "./command.js";
import { usageError } from "./command.js";

/** For commands that write a model. */
export const forceOption = {
  type: "boolean",
  help: "write into a folder that is not empty",
} as const satisfies OptionSpec;

interface NewFolder {
  /** Whether files in it may be replaced. */
  mayHold: boolean;
  /** The option that lets them be. */
  option?: string;
  /** Folders that are read, by what lies there. */
  inputs?: Readonly<Record<string, string>>;
  /** Whether a name is of what a killed program left, which is as good as nothing. */
  isRest?: (name: string) => boolean;
}

/**
 * Throws ERR_BNB_OPTION where `out` holds files already and they may not be replaced, or is a folder that is read, and
 * ERR_BNB_FILE where it cannot be written. Makes nothing.
 */
export async function checkNewFolder(
  out: string,
  { mayHold, option = "--force", inputs = {}, isRest = () => false }: NewFolder,
): Promise<void> {
  const found = await stat(out).catch(() => undefined);
  if (found && !found.isDirectory()) throw usageError(`${out} is a file; give a folder for the model`);
  for (const [what, folder] of Object.entries(inputs)) {
    if (!found || (await realpath(out)) !== (await realpath(folder).catch(() => folder))) continue;
    throw usageError(`${out} is the folder of ${what} itself; give another for the result`);
  }
  if (found && !mayHold && !(await readdir(out)).every(isRest)) {
    throw usageError(`${out} is not empty; give a new folder, or ${option} to write into it`);
  }
  for (let folder = resolve(out); ; folder = dirname(folder)) {
    const problem = await access(folder, constants.W_OK | constants.X_OK).catch(
      (error: NodeJS.ErrnoException) => error,
    );
    if (problem === undefined) return;
    if (problem.code === "ENOENT" && dirname(folder) !== folder) continue;
    throw new BnbError("ERR_BNB_FILE", `${out}: cannot be written, as ${folder} refuses it (${problem.code})`);
  }
}

/** Throws ERR_BNB_OPTION where a page could not be written. Leaves nothing behind. */
export async function checkWritable(option: string, path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  const probe = new Replacement();
  try {
    if (found?.isDirectory()) throw new Error("it is a folder");
    if (found) await access(path, constants.W_OK);
    if (!found || found.isFile()) await probe.write(found ? await realpath(path) : path, async () => undefined);
  } catch (error) {
    const { message } = error instanceof BnbError ? (error.cause as Error) : (error as Error);
    throw usageError(`${option} must name a file that can be written, got ${path}: ${message}`);
  } finally {
    await probe.discard();
  }
}

/**
 * Writes a page as a whole or not at all; what is no file, such as /dev/stdout, gets it as it comes. Throws ERR_BNB_FILE where
 * the system refuses.
 */
export async function writePage(path: string, html: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (!found || found.isFile()) {
    const target = found ? await realpath(path) : path;
    return replaceFiles((files) => files.write(target, (file) => file.writeFile(html)));
  }
  await writeFile(path, html).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be written: ${cause.message}`, { cause });
  });
}
