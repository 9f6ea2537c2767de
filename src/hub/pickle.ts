// Pickles of state dicts, read through a whitelist: a few opcodes that can build nothing but dicts, lists, plain values and
// descriptions of tensors. Nothing that a pickle names is ever called; anything else is refused by its name.
import { formatError } from "./safetensors-header.js";

/** A tensor as a pickle describes it: a window on a storage, which is an entry of the archive. */
export class PickledTensor {
  readonly storage: PickledStorage;
  readonly offset: number; // in elements
  readonly shape: readonly number[];
  readonly strides: readonly number[];

  constructor(storage: PickledStorage, offset: number, shape: readonly number[], strides: readonly number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}
export class PickledStorage {
  readonly type: string; // such as "FloatStorage"
  readonly key: string;

  constructor(type: string, key: string) {
    this.type = type;
    this.key = key;
  }
}
export type Pickled = null | boolean | number | string | PickledTensor | Pickled[] | PickledDict;
export type PickledDict = Map<string | number, Pickled>;

/** What a pickle may name, by module and name; storages beside them. */
class Global {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}
const callable = new Set([
  "collections.OrderedDict",
  "torch._utils._rebuild_tensor_v2",
  "torch._utils._rebuild_parameter",
]);
const storageName = /^torch\.(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage$/;

/** Names of opcodes that may do anything, for the error. */
const refused: Readonly<Record<number, string>> = {
  40: "MARK",
  105: "INST",
  111: "OBJ",
  129: "NEWOBJ",
  130: "EXT1",
  131: "EXT2",
  132: "EXT4",
  146: "NEWOBJ_EX",
  151: "NEXT_BUFFER",
  80: "PERSID",
};
const MAX_ITEMS = 10_000_000;
const mark = Symbol("mark");
const nothing = Symbol("nothing");

/** Reads a pickle of protocol 2 to 5. Throws ERR_BNB_FORMAT naming `file`. */
export function readPickle(bytes: Buffer, file: string): Pickled {
  return new Unpickler(bytes, file).run();
}

class Unpickler {
  readonly #bytes: Buffer;
  readonly #file: string;
  readonly #stack: unknown[] = [];
  readonly #memo = new Map<number, unknown>();
  #at = 0;
  #items = 0;

  constructor(bytes: Buffer, file: string) {
    this.#bytes = bytes;
    this.#file = file;
  }

  run(): Pickled {
    if (this.#byte() !== 0x80) this.#fail("does not begin as a pickle of protocol 2 or later");
    const protocol = this.#byte();
    if (protocol < 2 || protocol > 5) this.#fail(`has the protocol ${protocol}, known are 2 to 5`);
    for (;;) {
      const opcode = this.#byte();
      if (opcode === 0x2e) break; // STOP
      const value = this.#step(opcode);
      if (value !== nothing) this.#stack.push(value);
    }
    const result = this.#pop();
    if (this.#stack.length > 0) this.#fail("leaves values behind");
    if (result instanceof Global || result instanceof PickledStorage) this.#fail("holds no data");
    return result as Pickled;
  }

  /** What an opcode pushes, or `nothing`. */
  #step(opcode: number): unknown {
    if (++this.#items > MAX_ITEMS) this.#fail(`has more than ${MAX_ITEMS} steps`);
    switch (String.fromCharCode(opcode)) {
      case "(":
        return mark;
      case "}":
        return new Map();
      case "]":
      case ")":
        return [];
      case "t":
        return this.#popToMark();
      case "\x85":
      case "\x86":
      case "\x87":
        return this.#popMany(opcode - 0x84);
      case "N":
        return null;
      case "\x88":
        return true;
      case "\x89":
        return false;
      case "K":
        return this.#byte();
      case "M":
        return this.#take(2).readUInt16LE();
      case "J":
        return this.#take(4).readInt32LE();
      case "\x8a":
        return this.#long(this.#byte());
      case "G":
        return this.#take(8).readDoubleBE();
      case "X":
        return this.#text(this.#take(4).readUInt32LE());
      case "\x8c":
        return this.#text(this.#byte());
      case "q":
        this.#memo.set(this.#byte(), this.#top());
        return nothing;
      case "r":
        this.#memo.set(this.#take(4).readUInt32LE(), this.#top());
        return nothing;
      case "\x94":
        this.#memo.set(this.#memo.size, this.#top());
        return nothing;
      case "h":
        return this.#remembered(this.#byte());
      case "j":
        return this.#remembered(this.#take(4).readUInt32LE());
      case "\x95":
        return void this.#take(8); // FRAME
      case "c":
        return this.#global(this.#line(), this.#line());
      case "\x93": {
        const [module, name] = this.#popMany(2);
        return this.#global(String(module), String(name));
      }
      case "Q":
        return this.#storage(this.#pop());
      case "R": {
        const [called, given] = this.#popMany(2);
        return this.#build(called, given);
      }
      case "b": // the state of an OrderedDict is its _metadata
        this.#pop();
        if (!(this.#top() instanceof Map)) this.#fail("gives a state to what has none");
        return nothing;
      case "s":
        this.#setItems(this.#popMany(2));
        return nothing;
      case "u":
        this.#setItems(this.#popToMark());
        return nothing;
      case "a":
        this.#append(this.#popMany(1));
        return nothing;
      case "e":
        this.#append(this.#popToMark());
        return nothing;
      default: {
        const name = refused[opcode] ?? `0x${opcode.toString(16).padStart(2, "0")}`;
        return this.#fail(`has the opcode ${name}, which no state dict needs: refused, nothing was executed`);
      }
    }
  }

  #global(module: string, name: string): Global {
    const whole = `${module}.${name}`;
    if (callable.has(whole) || storageName.test(whole)) return new Global(whole);
    return this.#fail(`asks for ${JSON.stringify(whole.slice(0, 100))}: refused, nothing was executed`);
  }

  /** What the three callables of the whitelist give. */
  #build(called: unknown, given: unknown): unknown {
    if (!(called instanceof Global) || !Array.isArray(given)) return this.#fail("calls what cannot be called");
    if (called.name === "collections.OrderedDict") {
      const pairs = (given[0] ?? []) as unknown[];
      const dict: PickledDict = new Map();
      if (!Array.isArray(pairs)) return this.#fail("makes an OrderedDict of something else than pairs");
      this.#fill(dict, pairs.flat(1));
      return dict;
    }
    if (called.name === "torch._utils._rebuild_parameter") {
      if (given[0] instanceof PickledTensor) return given[0];
      return this.#fail("makes a parameter of something else than a tensor");
    }
    if (called.name !== "torch._utils._rebuild_tensor_v2") return this.#fail(`calls ${called.name}`);
    const [of, offset, shape, strides] = given as unknown[];
    const areSizes = (v: unknown): v is number[] =>
      Array.isArray(v) && v.length <= 64 && v.every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!(of instanceof PickledStorage) || !areSizes([offset]) || !areSizes(shape) || !areSizes(strides)) {
      return this.#fail("describes a tensor without a storage, an offset, a shape and strides");
    }
    if (shape.length !== strides.length) return this.#fail("describes a tensor with other strides than axes");
    return new PickledTensor(of, offset as number, shape, strides);
  }

  #storage(id: unknown): PickledStorage {
    const [kind, type, key] = Array.isArray(id) ? (id as unknown[]) : [];
    const isStorage = kind === "storage" && type instanceof Global && storageName.test(type.name);
    if (isStorage && typeof key === "string") return new PickledStorage(type.name.slice("torch.".length), key);
    return this.#fail("refers to something that is no storage of torch");
  }

  #setItems(pairs: unknown[]): void {
    const dict = this.#top();
    if (!(dict instanceof Map)) this.#fail("sets items of what is no dict");
    this.#fill(dict as PickledDict, pairs);
  }

  #fill(dict: PickledDict, pairs: readonly unknown[]): void {
    if (pairs.length % 2 !== 0) this.#fail("sets a key without its value");
    for (let i = 0; i < pairs.length; i += 2) {
      const key = pairs[i];
      if (typeof key !== "string" && typeof key !== "number") this.#fail("has a key that is neither text nor number");
      dict.set(key as string, pairs[i + 1] as Pickled);
    }
  }

  #append(items: unknown[]): void {
    const list = this.#top();
    if (!Array.isArray(list)) this.#fail("appends to what is no list");
    for (const item of items) (list as unknown[]).push(item);
  }

  #top(): unknown {
    const value = this.#stack.at(-1);
    if (this.#stack.length === 0 || value === mark) this.#fail("takes a value that is not there");
    return value;
  }
  #pop(): unknown {
    const value = this.#top();
    this.#stack.pop();
    return value;
  }
  #popMany(count: number): unknown[] {
    return Array.from({ length: count }, () => this.#pop()).reverse();
  }
  #popToMark(): unknown[] {
    const at = this.#stack.lastIndexOf(mark);
    if (at < 0) this.#fail("takes values back to a mark that is not there");
    const items = this.#stack.splice(at);
    return items.slice(1);
  }
  #remembered(index: number): unknown {
    if (!this.#memo.has(index)) this.#fail("remembers a value that was not there");
    return this.#memo.get(index);
  }

  #take(nbytes: number): Buffer {
    if (this.#at + nbytes > this.#bytes.length) this.#fail("ends too early");
    this.#at += nbytes;
    return this.#bytes.subarray(this.#at - nbytes, this.#at);
  }
  #byte(): number {
    return this.#take(1)[0] as number;
  }
  #text(nbytes: number): string {
    return this.#take(nbytes).toString("utf8");
  }
  #line(): string {
    const end = this.#bytes.indexOf(0x0a, this.#at);
    if (end < 0) this.#fail("ends too early");
    const text = this.#text(end - this.#at);
    this.#at++;
    return text;
  }
  /** An integer of any length; what a number does not hold exactly is not one that matters here. */
  #long(nbytes: number): number {
    const bytes = this.#take(nbytes);
    let value = 0n;
    for (let i = nbytes - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i] as number);
    return Number(BigInt.asIntN(Math.max(nbytes * 8, 1), value));
  }

  #fail(what: string): never {
    throw formatError(this.#file, `its pickle ${what} (byte ${this.#at})`);
  }
}
