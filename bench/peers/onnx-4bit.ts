// ONNX models of one 4-bit matrix product, written as protobuf bytes, for onnxruntime-node.

/** A protobuf message under construction: fields in the order of the calls. */
class Message {
  readonly #parts: Uint8Array[] = [];

  varint(field: number, value: number): this {
    return this.#raw(encodeVarint(field * 8), encodeVarint(value));
  }
  bytes(field: number, value: Uint8Array | string | Message): this {
    const payload = value instanceof Message ? value.finish() : typeof value === "string" ? Buffer.from(value) : value;
    return this.#raw(encodeVarint(field * 8 + 2), encodeVarint(payload.byteLength), payload);
  }
  finish(): Uint8Array {
    return Buffer.concat(this.#parts);
  }
  #raw(...parts: Uint8Array[]): this {
    this.#parts.push(...parts);
    return this;
  }
}

function encodeVarint(value: number): Uint8Array {
  const out: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) + 128);
  return Uint8Array.from([...out, rest]);
}

// Numbers of onnx.proto.
const FLOAT = 1;
const UINT8 = 2;
const INT_ATTRIBUTE = 2;

interface Initializer {
  name: string;
  type: number;
  dims: readonly number[];
  data: ArrayBufferView;
}

function tensorProto({ name, type, dims, data }: Initializer): Message {
  const message = new Message();
  for (const dim of dims) message.varint(1, dim);
  const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return message.varint(2, type).bytes(8, name).bytes(9, raw);
}

function valueInfo(name: string, columns: number): Message {
  const rows = new Message().bytes(2, "M");
  const shape = new Message().bytes(1, rows).bytes(1, new Message().varint(1, columns));
  const type = new Message().bytes(1, new Message().varint(1, FLOAT).bytes(2, shape));
  return new Message().bytes(1, name).bytes(2, type);
}

function model(
  op: string,
  attributes: Readonly<Record<string, number>>,
  k: number,
  n: number,
  weights: readonly Initializer[],
): Uint8Array {
  const node = new Message().bytes(1, "A");
  for (const { name } of weights) node.bytes(1, name);
  node.bytes(2, "Y").bytes(4, op);
  for (const [name, value] of Object.entries(attributes)) {
    node.bytes(5, new Message().bytes(1, name).varint(3, value).varint(20, INT_ATTRIBUTE));
  }
  node.bytes(7, "com.microsoft");
  const graph = new Message().bytes(1, node).bytes(2, "product");
  for (const weight of weights) graph.bytes(5, tensorProto(weight));
  graph.bytes(11, valueInfo("A", k)).bytes(12, valueInfo("Y", n));
  const opset = (domain: string, version: number): Message => new Message().bytes(1, domain).varint(2, version);
  return new Message()
    .varint(1, 8)
    .bytes(8, opset("", 17))
    .bytes(8, opset("com.microsoft", 1))
    .bytes(7, graph)
    .finish();
}

/** MatMulBnb4: the same packed bytes and scales as ours, the first code of a pair in the high half of the byte. */
export function matMulBnb4(
  n: number,
  k: number,
  packed: Uint8Array,
  absmax: Float32Array,
  blocksize: number,
  type: "nf4" | "fp4",
): Uint8Array {
  const attributes = { K: k, N: n, block_size: blocksize, quant_type: type === "nf4" ? 1 : 0 };
  return model("MatMulBnb4", attributes, k, n, [
    { name: "B", type: UINT8, dims: [packed.length], data: packed },
    { name: "absmax", type: FLOAT, dims: [absmax.length], data: absmax },
  ]);
}

/** MatMulNBits with 4 bits: evenly spaced codes (q - 8) * scale; accuracy level 1 computes in float32, 4 in int8. */
export function matMulNBits(
  n: number,
  k: number,
  packed: Uint8Array,
  scales: Float32Array,
  blocksize: number,
  accuracyLevel: 1 | 4,
): Uint8Array {
  const attributes = { K: k, N: n, bits: 4, block_size: blocksize, accuracy_level: accuracyLevel };
  return model("MatMulNBits", attributes, k, n, [
    { name: "B", type: UINT8, dims: [n, k / blocksize, blocksize / 2], data: packed },
    { name: "scales", type: FLOAT, dims: [(n * k) / blocksize], data: scales },
  ]);
}
