// Files that appear under their names only when all of them are complete and on the disk: whatever fails before, such
// as a full disk, leaves what was there.
import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { open, readFile, rename, rm, rmdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { BnbError } from "../tensor/errors.js";
import { makeFolders } from "./make-folders.js";

/** Files that are being written; they go even when the program ends meanwhile, as after Ctrl-C. */
const unfinished = new Set<string>();
const removeUnfinished = (): void => {
  for (const part of unfinished) rmSync(part, { force: true });
};

function begun(part: string): void {
  if (unfinished.size === 0) process.on("exit", removeUnfinished);
  unfinished.add(part);
}

function ended(part: string): void {
  unfinished.delete(part);
  if (unfinished.size === 0) process.off("exit", removeUnfinished);
}

/** A set of files that replace others together. Every call may throw ERR_BNB_FILE; `discard` then cleans up. */
export class Replacement {
  readonly #parts = new Map<string, string>();
  readonly #obsolete: string[] = [];
  readonly #newFolders: string[] = [];

  /** Writes and flushes a file under a temporary name beside `path`, whose folder is made if need be. */
  async write(path: string, write: (file: FileHandle) => Promise<void>): Promise<void> {
    const part = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.part`);
    await refusable(path, async () => {
      this.#newFolders.push(...(await makeFolders(dirname(path))));
      const file = await open(part, "wx");
      this.#parts.set(path, part);
      begun(part);
      try {
        await write(file);
        await file.sync();
      } finally {
        await file.close();
      }
    });
  }

  /** Stages the bytes of another file. */
  async copy(from: string, path: string): Promise<void> {
    const bytes = await readFile(from);
    await this.write(path, (file) => file.writeFile(bytes));
  }

  /** Removes `path`, where it exists, after the files have their names. */
  remove(path: string): void {
    this.#obsolete.push(path);
  }

  /** Gives all files their names, in the order in which they were written. */
  async commit(): Promise<void> {
    for (const [path, part] of this.#parts) {
      await refusable(path, () => rename(part, path));
      this.#parts.delete(path);
      ended(part);
      this.#newFolders.length = 0;
      await flushFolder(dirname(path));
    }
    for (const path of this.#obsolete) await refusable(path, () => rm(path, { force: true }));
  }

  /** Removes what has no name yet, and the folders that were made for it. */
  async discard(): Promise<void> {
    for (const part of this.#parts.values()) {
      await rm(part, { force: true }).catch(() => undefined);
      ended(part);
    }
    this.#parts.clear();
    for (const folder of this.#newFolders.reverse()) await rmdir(folder).catch(() => undefined);
    this.#newFolders.length = 0;
  }
}

/** Runs `stage` and commits what it wrote; nothing of a failed attempt stays. */
export async function replaceFiles(stage: (files: Replacement) => Promise<void>): Promise<void> {
  const files = new Replacement();
  try {
    await stage(files);
    await files.commit();
  } finally {
    await files.discard();
  }
}

async function refusable(path: string, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (cause) {
    if (cause instanceof BnbError) throw cause;
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be written: ${(cause as Error).message}`, { cause });
  }
}

/** After a crash of the machine the new names in a folder are there, too. Not every system can open one. */
export async function flushFolder(path: string): Promise<void> {
  try {
    const folder = await open(path, "r");
    await folder.sync().finally(() => folder.close());
  } catch {
    // The rename itself has happened.
  }
}
