// Which pages hold the keys and values of which tokens. Pure bookkeeping: page numbers, no memory. Sequences share pages
// by reference counts; full pages can be found again by what they hold, also when nobody uses them any more.
import { pageSize } from "../models/step-plan.js";
import { BnbError } from "../tensor/errors.js";

/** What a page holds, when it is full: 16 ids behind a chain of others. */
interface Content {
  readonly key: string;
  /** Names the chain that ends with this page; never given twice. */
  readonly serial: number;
}

/**
 * A fixed number of pages.
 *
 * A page that may be found again is known by its 16 token ids, the serial number of the page before it, and the salt of
 * its sequence: the whole text of the chain, so that no two can be taken for each other. Pages that nobody uses are given
 * out again, those that cannot be found first, then those that have waited longest.
 */
export class BlockPool {
  readonly size: number;
  readonly sharePrefixes: boolean;
  readonly #references: Int32Array;
  readonly #contents: (Content | undefined)[];
  readonly #byKey = new Map<string, number>();
  readonly #empty: number[];
  readonly #idle = new Set<number>(); // in the order in which they became so
  #copies: [from: number, to: number][] = [];
  #nextSerial = 1;

  constructor(size: number, options: { sharePrefixes?: boolean } = {}) {
    this.size = size;
    this.sharePrefixes = options.sharePrefixes ?? true;
    this.#references = new Int32Array(size);
    this.#contents = new Array<Content | undefined>(size).fill(undefined);
    this.#empty = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  /** Pages that can be given out. */
  get available(): number {
    return this.#empty.length + this.#idle.size;
  }

  /**
   * A sequence without tokens. Only those of one salt and one adapter (0: none) share pages, and only those of the first
   * `shared` tokens.
   */
  open(salt = "", shared = Infinity, adapter = 0): BlockSequence {
    return new BlockSequence(this, `${adapter}#${salt}`, shared);
  }

  /** Pages to copy before the next step writes, in this order; each is told once. */
  takeCopies(): [from: number, to: number][] {
    const copies = this.#copies;
    this.#copies = [];
    return copies;
  }

  /** No page is found again: for when their contents have been lost. */
  forget(): void {
    for (const key of [...this.#byKey.keys()]) this.#drop(this.#byKey.get(key) as number);
    for (const page of this.#idle) this.#empty.push(page);
    this.#idle.clear();
  }

  /** @internal */
  isShared(page: number): boolean {
    return (this.#references[page] as number) > 1;
  }

  /** @internal A page that nobody uses; there must be one. */
  take(): number {
    let page = this.#empty.pop();
    if (page === undefined) {
      [page] = this.#idle;
      this.#idle.delete(page as number);
      this.#drop(page as number);
    }
    this.#references[page as number] = 1;
    return page as number;
  }

  /** @internal */
  retain(page: number): void {
    this.#idle.delete(page);
    (this.#references[page] as number)++;
  }

  /** @internal */
  release(page: number): void {
    if (--(this.#references[page] as number) > 0) return;
    if (this.#contents[page]) this.#idle.add(page);
    else this.#empty.push(page);
  }

  /** @internal A page of one's own with the contents of a shared one, which is released. */
  copy(page: number): number {
    const own = this.take();
    this.#copies.push([page, own]);
    this.release(page);
    return own;
  }

  /** @internal */
  find(key: string): { page: number; serial: number } | undefined {
    const page = this.#byKey.get(key);
    return page === undefined ? undefined : { page, serial: (this.#contents[page] as Content).serial };
  }

  /** @internal The serial number of a chain that now ends with this page. */
  remember(page: number, key: string): number {
    const known = this.find(key);
    if (known) return known.serial;
    const serial = this.#nextSerial++;
    this.#byKey.set(key, page);
    this.#contents[page] = { key, serial };
    return serial;
  }

  /** @internal The page is about to hold something else. */
  overwrite(page: number): void {
    this.#drop(page);
  }

  #drop(page: number): void {
    const content = this.#contents[page];
    if (!content) return;
    this.#byKey.delete(content.key);
    this.#contents[page] = undefined;
  }
}

/** The pages of one sequence, and the ids of the tokens in them. */
export class BlockSequence implements Disposable {
  readonly #pool: BlockPool;
  readonly #root: string;
  readonly #shared: number;
  readonly #pages: number[] = [];
  readonly #serials: number[] = []; // of the full pages
  readonly #ids: number[] = [];
  #found = 0;
  #isFresh = true;

  /** @internal */
  constructor(pool: BlockPool, root: string, shared: number) {
    this.#pool = pool;
    this.#root = root;
    this.#shared = shared;
  }

  /** Tokens that others had computed before this sequence computed any. */
  get found(): number {
    return this.#found;
  }

  /** Tokens whose keys and values are there. */
  get length(): number {
    return this.#ids.length;
  }

  /** Page i has tokens 16 i to 16 i + 15. */
  get pages(): readonly number[] {
    return this.#pages;
  }

  /** Where token `position` goes: page * 16 + row. */
  slot(position: number): number {
    return (this.#pages[Math.floor(position / pageSize)] as number) * pageSize + (position % pageSize);
  }

  /** By what the next page will be found once it holds the next 16 of `ids`; null where it will not be. */
  nextKey(ids: readonly number[]): string | null {
    const { length } = this;
    const isShared = this.#pool.sharePrefixes && length + pageSize <= this.#shared;
    if (!isShared || length % pageSize > 0 || ids.length < length + pageSize) return null;
    return this.#key(length / pageSize, ids);
  }

  /** Takes over pages that hold what follows in `ids`, as long as at least `rest` of these stay. */
  adopt(ids: readonly number[], rest: number): void {
    while (this.length + pageSize + rest <= ids.length) {
      const key = this.nextKey(ids);
      const found = key === null ? undefined : this.#pool.find(key);
      if (!found) return;
      // Pages reserved for other tokens.
      this.#shorten(this.length);
      this.#pool.retain(found.page);
      this.#pages.push(found.page);
      this.#serials.push(found.serial);
      if (this.#isFresh) this.#found += pageSize;
      for (let i = 0; i < pageSize; i++) this.#ids.push(ids[this.length] as number);
    }
  }

  /** Makes room for the keys and values of `count` more tokens. False, and nothing happens, when the pool has not enough. */
  reserve(count: number): boolean {
    const pool = this.#pool;
    const missing = Math.max(0, Math.ceil((this.length + count) / pageSize) - this.#pages.length);
    const last = this.length % pageSize > 0 ? Math.floor(this.length / pageSize) : -1;
    const mustCopy = count > 0 && last >= 0 && pool.isShared(this.#pages[last] as number);
    if (missing + Number(mustCopy) > pool.available) return false;
    if (mustCopy) this.#pages[last] = pool.copy(this.#pages[last] as number);
    else if (count > 0 && last >= 0) pool.overwrite(this.#pages[last] as number);
    for (let i = 0; i < missing; i++) this.#pages.push(pool.take());
    return true;
  }

  /** Counts tokens whose keys and values the step that is made will write, where there is room for them. */
  append(ids: readonly number[]): void {
    const room = this.#pages.length * pageSize - this.length;
    if (ids.length > room) {
      throw new BnbError("ERR_BNB_ARGUMENT", `append: ids must be at most the ${room} reserved, got ${ids.length}`);
    }
    this.#isFresh = false;
    for (const id of ids) this.#ids.push(id);
    if (!this.#pool.sharePrefixes) return;
    const end = Math.floor(Math.min(this.length, this.#shared) / pageSize);
    for (let i = this.#serials.length; i < end; i++) {
      this.#serials.push(this.#pool.remember(this.#pages[i] as number, this.#key(i, this.#ids)));
    }
  }

  /** Another sequence with the same tokens, on the same pages until one of the two writes. */
  fork(): BlockSequence {
    const other = new BlockSequence(this.#pool, this.#root, this.#shared);
    for (const page of this.#pages.slice(0, Math.ceil(this.length / pageSize))) {
      this.#pool.retain(page);
      other.#pages.push(page);
    }
    other.#serials.push(...this.#serials);
    for (const id of this.#ids) other.#ids.push(id);
    other.#isFresh = false;
    return other;
  }

  /** Forgets the tokens from `length` on, and gives back pages that hold none of those before. */
  truncate(length: number): void {
    this.#ids.length = Math.min(length, this.length);
    this.#serials.length = Math.min(this.#serials.length, Math.floor(this.length / pageSize));
    this.#shorten(this.length);
  }

  dispose(): void {
    this.truncate(0);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  // The last page goes first, so that of a chain the end is given out before what it hangs on.
  #shorten(length: number): void {
    const wanted = Math.ceil(length / pageSize);
    while (this.#pages.length > wanted) this.#pool.release(this.#pages.pop() as number);
  }

  #key(page: number, ids: readonly number[]): string {
    const before = page === 0 ? this.#root : String(this.#serials[page - 1]);
    return `${before}:${ids.slice(page * pageSize, (page + 1) * pageSize).join()}`;
  }
}
