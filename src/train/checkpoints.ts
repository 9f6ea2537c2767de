// Checkpoints of a run: folders that appear under their names only when all of them is on the disk, and that say by the hashes
// of their files whether they are whole. Whatever ends the program meanwhile, the ones before stay.
import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { cp, readdir, readFile, rename, rm } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import { flushFolder, replaceFiles } from "../hub/replace-files.js";
import type { WritableTensors } from "../hub/safetensors-writer.js";
import { saveSafetensors } from "../hub/safetensors-writer.js";
import { BnbError } from "../tensor/errors.js";

const STATE = "trainer_state.json";
const NAME = /^checkpoint-(\d+)$/;

/** Whether a name in the folder of a run is of a checkpoint that a killed program left half written. */
export const isUnfinished = (name: string): boolean => /^\.checkpoint-\d+\.[0-9a-f]{12}$/.test(name);

/** A file of tensors, with strings beside them. */
export interface TensorFileContent {
  readonly tensors: WritableTensors;
  readonly metadata?: Readonly<Record<string, string>>;
}

/** Writes checkpoints of one folder. */
export class CheckpointFolder {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  pathOf(step: number): string {
    return join(this.#folder, `checkpoint-${step}`);
  }

  /** Removes what a killed program left unfinished. */
  async clean(): Promise<void> {
    for (const name of await this.#names()) {
      if (isUnfinished(name)) await rm(join(this.#folder, name), { recursive: true, force: true });
    }
  }

  /** Writes the checkpoint of a step; its name appears last. Throws ERR_BNB_FILE where the system refuses. */
  async write(step: number, files: Readonly<Record<string, TensorFileContent>>, state: object): Promise<string> {
    const path = this.pathOf(step);
    const part = this.#hidden(step);
    try {
      const hashes: Record<string, string> = {};
      for (const [name, { tensors, metadata }] of Object.entries(files)) {
        await saveSafetensors(join(part, name), tensors, metadata ? { metadata } : {});
        hashes[name] = await hashOf(join(part, name));
      }
      const text = JSON.stringify({ ...state, files: hashes });
      const sha256 = createHash("sha256").update(text).digest("hex");
      await replaceFiles((staged) =>
        staged.write(join(part, STATE), (file) => file.writeFile(`{"sha256":"${sha256}","state":${text}}\n`)),
      );
      // A run that went back writes a step again.
      await this.#remove(step);
      await rename(part, path);
      await flushFolder(this.#folder);
      return path;
    } catch (cause) {
      await rm(part, { recursive: true, force: true }).catch(() => undefined);
      const rule = `${path}: the checkpoint could not be written, those before it are as they were`;
      throw new BnbError("ERR_BNB_FILE", `${rule}: ${(cause as Error).message}`, { cause });
    }
  }

  /** Steps that have a checkpoint, newest first. */
  async steps(): Promise<number[]> {
    const found = (await this.#names()).flatMap((name) => NAME.exec(name)?.[1] ?? []);
    return found.map(Number).sort((a, b) => b - a);
  }

  /**
   * Keeps `limit` checkpoints and the one of step `best`. Those that count are the one of step `written` and the newest before
   * it: later ones are broken, or of a run that this one went back behind.
   */
  async trim(limit: number, written: number, best: number | null): Promise<void> {
    const steps = await this.steps();
    const inOrder = [...steps.filter((step) => step <= written), ...steps.filter((step) => step > written).reverse()];
    for (const step of inOrder.slice(limit)) if (step !== best) await this.#remove(step);
  }

  /** Whether there is a whole checkpoint of a step: here, or in the folder `other`, from where it is copied then. */
  async has(step: number, other: string): Promise<boolean> {
    const isWhole = (path: string): Promise<boolean> =>
      readCheckpoint(path).then(
        () => true,
        () => false,
      );
    const path = this.pathOf(step);
    if (await isWhole(path)) return true;
    const from = join(other, basename(path));
    if (resolve(from) === resolve(path) || !(await isWhole(from))) return false;
    const part = this.#hidden(step);
    try {
      await cp(from, part, { recursive: true });
      await this.#remove(step);
      await rename(part, path);
      return true;
    } catch (cause) {
      await rm(part, { recursive: true, force: true }).catch(() => undefined);
      const rule = `${path}: the checkpoint could not be copied from ${from}`;
      throw new BnbError("ERR_BNB_FILE", `${rule}: ${(cause as Error).message}`, { cause });
    }
  }

  /** The newest checkpoint that is whole, or null where there is none. The broken ones before it give a warning each. */
  async newest(): Promise<Checkpoint | null> {
    const steps = await this.steps();
    for (const [i, step] of steps.entries()) {
      try {
        return await readCheckpoint(this.pathOf(step));
      } catch (error) {
        const problem = (error as Error).message;
        const next = i + 1 < steps.length ? "the checkpoint before it is taken" : "none is left: training begins anew";
        process.emitWarning(`${problem}; ${next}`, {
          type: "BnbWarning",
          code: "BNB_BROKEN_CHECKPOINT",
        });
      }
    }
    return null;
  }

  async #names(): Promise<string[]> {
    return readdir(this.#folder).catch(() => []);
  }

  // Under a name that is no checkpoint's before it goes, so that no half of one is ever found.
  async #remove(step: number): Promise<void> {
    const hidden = this.#hidden(step);
    const isThere = await rename(this.pathOf(step), hidden).then(
      () => true,
      () => false,
    );
    if (isThere) await rm(hidden, { recursive: true, force: true });
  }

  #hidden(step: number): string {
    return join(this.#folder, `.checkpoint-${step}.${randomBytes(6).toString("hex")}`);
  }
}

/** A checkpoint that was found whole. */
export interface Checkpoint {
  readonly path: string;
  readonly state: Readonly<Record<string, unknown>>;
}

/** Reads a checkpoint's state and checks all its files. Throws ERR_BNB_FORMAT where one is not as it was written. */
export async function readCheckpoint(path: string): Promise<Checkpoint> {
  const broken = (why: string, cause?: unknown): never => {
    throw new BnbError("ERR_BNB_FORMAT", `${path}: the checkpoint must be as it was written, got ${why}`, { cause });
  };
  const text = await readFile(join(path, STATE), "utf8").catch((cause) => broken(`none with a ${STATE}`, cause));
  const [, sha256, body] = /^\{"sha256":"([0-9a-f]{64})","state":(.*)\}\n$/s.exec(text) ?? [];
  if (body === undefined || createHash("sha256").update(body).digest("hex") !== sha256) broken(`a changed ${STATE}`);
  const state = JSON.parse(body as string) as Record<string, unknown>;
  for (const [name, hash] of Object.entries(state.files as Record<string, string>)) {
    const found = await hashOf(join(path, basename(name))).catch((cause) => broken(`none with ${name}`, cause));
    if (found !== hash) broken(`a changed ${name}`);
  }
  return { path, state };
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of createReadStream(path)) hash.update(piece as Uint8Array);
  return hash.digest("hex");
}

/** Makes the folder of a run. Throws ERR_BNB_FILE where that cannot be. */
export async function makeRunFolder(path: string): Promise<void> {
  await makeFolders(path).catch((cause: Error) => {
    throw new BnbError("ERR_BNB_FILE", `${path}: the folder could not be made: ${cause.message}`, { cause });
  });
}
