// Files for weights that wait on disk. Each loses its name as soon as it is open, so that nothing stays behind, however
// the process ends.
import type { FileHandle } from "node:fs/promises";
import { mkdtemp, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import { BnbError } from "../tensor/errors.js";

export class OffloadFolder {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** Throws ERR_BNB_FILE where no file can be made. */
  async check(): Promise<void> {
    const file = await this.create();
    await file.close();
  }

  /** An empty file, for reading and writing, that nobody else can open. The caller closes it. */
  async create(): Promise<FileHandle> {
    let folder: string | undefined;
    try {
      await makeFolders(this.#path);
      folder = await mkdtemp(join(this.#path, "bnb-offload-"));
      return await open(join(folder, "weights.bin"), "wx+", 0o600);
    } catch (error) {
      const { message } = error as Error;
      throw new BnbError("ERR_BNB_FILE", `offloadFolder: no file could be made in ${this.#path}: ${message}`, {
        cause: error,
      });
    } finally {
      if (folder !== undefined) await rm(folder, { recursive: true, force: true });
    }
  }
}
