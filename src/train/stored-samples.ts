// Samples that lie in a file instead of in memory: token ids and labels one behind the other, read one sample at a time. Only
// where each begins and how long it is stays in memory.
import { randomBytes } from "node:crypto";
import { closeSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { makeFolders } from "../hub/make-folders.js";
import { BnbError } from "../tensor/errors.js";
import type { Sample } from "./sample.js";

/** Samples by number: an array, or `StoredSamples`. */
export interface SampleList<S> extends Iterable<S> {
  readonly length: number;
  at(i: number): S | undefined;
  slice(start?: number, end?: number): readonly S[];
}

/** How a sample is made of samples of token ids. */
export interface SampleForm<S> {
  parts(sample: S): readonly Sample[];
  whole(parts: readonly Sample[]): S;
}

/** Bytes that are collected before they are written. */
const BUFFERED = 1 << 20;

/** Samples in a file. Holds the file open until it is disposed, which removes it. */
export class StoredSamples<S> implements SampleList<S>, Disposable {
  readonly #path: string;
  /** What the file is called: another name until it is complete. */
  #name: string;
  readonly #form: SampleForm<S>;
  readonly #file: number;
  // Where each sample begins, and one behind the last; tokens of each.
  readonly #starts: number[] = [0];
  readonly #lengths: number[] = [];
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #writtenBytes = 0;
  #isOpen = true;

  private constructor(path: string, form: SampleForm<S>) {
    this.#path = path;
    // A name that no other file has: a fixed one could be that of the source.
    this.#name = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.part`);
    this.#form = form;
    this.#file = filed(path, () => openSync(this.#name, "wx+"));
  }

  /** @internal An empty list in a new file, which gets its name by `finish`. Rejects with ERR_BNB_FILE where it cannot be made. */
  static async make<S>(path: string, form: SampleForm<S>): Promise<StoredSamples<S>> {
    await makeFolders(dirname(path));
    return new StoredSamples(path, form);
  }

  get length(): number {
    return this.#lengths.length;
  }

  /** Tokens of each sample, all its parts together. */
  get lengths(): readonly number[] {
    return this.#lengths;
  }

  /** @internal Adds a sample at the end. Throws ERR_BNB_FILE for a full disk. */
  push(sample: S): void {
    const parts = this.#form.parts(sample);
    const words = Int32Array.of(parts.length, ...parts.map(({ ids }) => ids.length));
    let bytes = 0;
    for (const list of [words, ...parts.flatMap(({ ids, labels }) => [ids, labels])]) {
      this.#waiting.push(Buffer.from(list.buffer, list.byteOffset, list.byteLength));
      bytes += list.byteLength;
    }
    this.#starts.push((this.#starts.at(-1) as number) + bytes);
    this.#lengths.push(parts.reduce((sum, { ids }) => sum + ids.length, 0));
    this.#waitingBytes += bytes;
    if (this.#waitingBytes >= BUFFERED) this.#flush();
  }

  /** @internal Gives the file its name, in the place of what had it. Throws ERR_BNB_FILE. */
  finish(): void {
    filed(this.#path, () => renameSync(this.#name, this.#path));
    this.#name = this.#path;
  }

  #flush(): void {
    const bytes = Buffer.concat(this.#waiting);
    this.#waiting = [];
    this.#waitingBytes = 0;
    for (let at = 0; at < bytes.length; ) {
      const written = filed(this.#path, () => writeSync(this.#file, bytes, at, bytes.length - at, this.#writtenBytes));
      at += written;
      this.#writtenBytes += written;
    }
  }

  /** The i-th sample, from the end for a negative i; undefined where there is none. Throws ERR_BNB_FILE. */
  at(i: number): S | undefined {
    const number = i < 0 ? i + this.length : i;
    const [start, end] = [this.#starts[number], this.#starts[number + 1]];
    if (start === undefined || end === undefined) return undefined;
    if (!this.#isOpen) throw new BnbError("ERR_BNB_ARGUMENT", `${this.#path}: its samples were disposed`);
    if (this.#waitingBytes > 0) this.#flush();
    const words = new Int32Array((end - start) / 4);
    const bytes = new Uint8Array(words.buffer);
    for (let at = 0; at < bytes.length; ) {
      const read = filed(this.#path, () => readSync(this.#file, bytes, at, bytes.length - at, start + at));
      if (read === 0) throw new BnbError("ERR_BNB_FILE", `${this.#path}: ends at byte ${start + at}: it was changed`);
      at += read;
    }
    const count = words[0] as number;
    let at = 1 + count;
    const parts = Array.from(words.subarray(1, at), (length) => {
      const part = { ids: words.slice(at, at + length), labels: words.slice(at + length, at + 2 * length) };
      at += 2 * length;
      return part;
    });
    return this.#form.whole(parts);
  }

  slice(start = 0, end: number = this.length): readonly S[] {
    const samples: S[] = [];
    for (let i = start; i < Math.min(end, this.length); i++) samples.push(this.at(i) as S);
    return samples;
  }

  *[Symbol.iterator](): Iterator<S> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as S;
  }

  /** Closes and removes the file. */
  dispose(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    closeSync(this.#file);
    rmSync(this.#name, { force: true });
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function filed<T>(path: string, act: () => T): T {
  try {
    return act();
  } catch (cause) {
    const { message } = cause as Error;
    throw new BnbError("ERR_BNB_FILE", `${path}: could not be used for samples: ${message}`, { cause });
  }
}
