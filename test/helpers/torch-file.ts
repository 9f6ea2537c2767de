// Files as torch.save writes them: a zip of stored entries with a pickle, made byte by byte.

const short = (n: number): Buffer => {
  const b = Buffer.alloc(2);
  b.writeUInt16LE(n);
  return b;
};
const word = (n: number): Buffer => {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(n);
  return b;
};

/** A zip archive whose entries are stored as they are; checksums are left out. */
export function zipOf(entries: Record<string, Buffer>, method = 0): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [name, bytes] of Object.entries(entries)) {
    const common = [
      short(0),
      short(method),
      word(0),
      word(0),
      word(bytes.length),
      word(bytes.length),
      short(name.length),
    ];
    const local = Buffer.concat([Buffer.from("PK\x03\x04"), short(0), ...common, short(0), Buffer.from(name)]);
    const central = [Buffer.from("PK\x01\x02"), short(0), short(0), ...common, short(0), short(0), short(0), short(0)];
    directory.push(Buffer.concat([...central, word(0), word(at), Buffer.from(name)]));
    parts.push(local, bytes);
    at += local.length + bytes.length;
  }
  const central = Buffer.concat(directory);
  const count = short(directory.length);
  const end = [Buffer.from("PK\x05\x06"), word(0), count, count, word(central.length), word(at), short(0)];
  return Buffer.concat([...parts, central, ...end]);
}

/** Opcodes of a pickle, by what they push. */
export const op = {
  text: (text: string): Buffer => Buffer.concat([Buffer.from("X"), word(Buffer.byteLength(text)), Buffer.from(text)]),
  int: (n: number): Buffer => Buffer.concat([Buffer.from("J"), word(n >>> 0)]),
  global: (module: string, name: string): Buffer => Buffer.from(`c${module}\n${name}\n`),
  tuple: (...items: Buffer[]): Buffer => Buffer.concat([Buffer.from("("), ...items, Buffer.from("t")]),
  dict: (...items: Buffer[]): Buffer => Buffer.concat([Buffer.from("}("), ...items, Buffer.from("u")]),
  call: (callable: Buffer, ...given: Buffer[]): Buffer =>
    Buffer.concat([callable, op.tuple(...given), Buffer.from("R")]),
  storage: (type: string, key: string, elements: number): Buffer => {
    const id = [op.text("storage"), op.global("torch", type), op.text(key), op.text("cpu"), op.int(elements)];
    return Buffer.concat([op.tuple(...id), Buffer.from("Q")]);
  },
  tensor: (storage: Buffer, offset: number, shape: number[], strides: number[]): Buffer => {
    const sizes = (numbers: number[]) => op.tuple(...numbers.map(op.int));
    const hooks = Buffer.concat([op.global("collections", "OrderedDict"), Buffer.from(")R")]);
    const rebuild = op.global("torch._utils", "_rebuild_tensor_v2");
    return op.call(rebuild, storage, op.int(offset), sizes(shape), sizes(strides), Buffer.from([0x89]), hooks);
  },
  pickle: (body: Buffer): Buffer => Buffer.concat([Buffer.from([0x80, 2]), body, Buffer.from(".")]),
};
