// Compares what the same program computes here and in another Node.js: node tools/test/compare.mjs <command of the other>. Codes
// and integers must be equal to the bit; floats may differ by how their sums are ordered. BNB_BINARY, where it is set, is the
// other's.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";

/** @typedef {{ name: string, dtype: string, values: number[] }} Output */

/** Relative to the largest value of the output: a sum in another order, rounded to the output's type. */
const tolerances = new Map([
  ["float32", 2e-5],
  ["float16", 2e-3],
  ["bfloat16", 1.6e-2],
]);

/** @returns {Output[]} */
function compute() {
  const B = createRequire(import.meta.url)("../../dist/index.js");
  /** @type {Output[]} */
  const outputs = [];
  /** @type {(name: string, tensor: import("../../src/index.js").Tensor) => void} */
  const put = (name, tensor) =>
    void outputs.push({
      name,
      dtype: tensor.dtype,
      values: [...(tolerances.has(tensor.dtype) ? tensor.floatsSync() : tensor.dataSync())].map(Number),
    });
  // Made by arithmetic that is exact everywhere, not by the device's own generator.
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return ((state >>> 8) / 2 ** 24 - 0.5) * 4;
  };
  /** @type {(dtype: import("../../src/index.js").DType, ...shape: number[]) => import("../../src/index.js").Tensor} */
  const some = (dtype, ...shape) =>
    B.fromBytes(new Uint8Array(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random).buffer), {
      shape,
      dtype: "float32",
    }).cast(dtype);

  for (const dtype of /** @type {const} */ (["float32", "float16", "bfloat16"])) {
    for (const quantType of ["nf4", "fp4"]) {
      for (const blocksize of [64, 128, 256, 512, 1024]) {
        for (const compressStatistics of [false, true]) {
          const name = `${quantType} ${blocksize}${compressStatistics ? " nested" : ""} ${dtype}`;
          const [packed, quantState] = B.quantize4bit(some(dtype, 24, 256), {
            quantType,
            blocksize,
            compressStatistics,
          });
          put(`quantize ${name}`, packed);
          put(`dequantize ${name}`, B.dequantize4bit(packed, { quantState }));
        }
      }
    }
    for (const blocksize of [64, 256, 1024]) {
      const [codes, quantState] = B.quantizeBlockwise(some(dtype, 5, 600), { blocksize });
      put(`quantizeBlockwise ${blocksize} ${dtype}`, codes);
      put(`dequantizeBlockwise ${blocksize} ${dtype}`, B.dequantizeBlockwise(codes, { quantState }));
    }
    for (const [rows, inner, columns] of [
      [1, 64, 33],
      [7, 129, 16],
      [32, 96, 48],
    ]) {
      put(`matmul ${rows} ${inner} ${columns} ${dtype}`, some(dtype, rows, inner).matmul(some(dtype, inner, columns)));
    }
    const unary = [
      "neg",
      "abs",
      "sign",
      "square",
      "exp",
      "sigmoid",
      "tanh",
      "relu",
      "silu",
      "gelu",
      "geluTanh",
      "softplus",
    ];
    for (const op of unary) put(`${op} ${dtype}`, B[op](some(dtype, 9, 37)));
    for (const op of ["sqrt", "rsqrt", "log", "reciprocal"])
      put(`${op} ${dtype}`, B[op](some(dtype, 9, 37).square().add(0.5)));
    for (const op of ["add", "sub", "mul", "maximum", "minimum"]) {
      put(`${op} ${dtype}`, B[op](some(dtype, 9, 37), some(dtype, 37)));
    }
    for (const op of ["sum", "mean", "max", "min"]) put(`${op} ${dtype}`, B[op](some(dtype, 9, 37), { axis: -1 }));
    for (const op of ["argmax", "softmax", "logSoftmax"]) put(`${op} ${dtype}`, B[op](some(dtype, 9, 37)));
    put(`layerNorm ${dtype}`, B.layerNorm(some(dtype, 9, 40), some(dtype, 40), some(dtype, 40)));
    put(`rmsNorm ${dtype}`, B.rmsNorm(some(dtype, 9, 40), some(dtype, 40)));
    const heads = () => some(dtype, 2, 4, 10, 16);
    put(`attention ${dtype}`, B.attention(heads(), heads(), heads(), { causal: true }));
    put(`cast ${dtype}`, some("float32", 9, 37).cast(dtype));
    put(`transpose ${dtype}`, some(dtype, 9, 37).transpose());
  }
  const { codes, stats } = B.int8VectorwiseQuant(some("float16", 16, 128));
  put("int8VectorwiseQuant codes", codes);
  put("int8VectorwiseQuant stats", stats);
  return outputs;
}

/** @type {(mine: Output, other: Output | undefined) => string} what is wrong, or nothing */
function difference(mine, other) {
  if (!other || other.dtype !== mine.dtype || other.values.length !== mine.values.length) return "not the same output";
  const tolerance = tolerances.get(mine.dtype) ?? 0;
  const bound = tolerance * Math.max(...mine.values.map(Math.abs), 0);
  const at = mine.values.findIndex((value, i) => Math.abs(value - (other.values[i] ?? Number.NaN)) > bound);
  return at < 0 ? "" : `at ${at}: ${mine.values[at]} here, ${other.values[at]} there`;
}

const [command] = process.argv.slice(2);
if (command === undefined) {
  console.log(JSON.stringify(compute()));
} else {
  const path = process.argv[1] ?? "";
  /** @type {(program: string, env: NodeJS.ProcessEnv) => Output[]} */
  const outputsOf = (program, env) => {
    const { status, stdout, stderr, error } = spawnSync(program, [path], { env, encoding: "utf8", maxBuffer: 2 ** 28 });
    if (error || status !== 0) throw error ?? new Error(`${program} ended with ${status}: ${stderr}`);
    return JSON.parse(stdout);
  };
  const { BNB_BINARY, ...env } = process.env;
  const mine = outputsOf(process.execPath, env);
  const others = outputsOf(command, process.env);
  const wrong = mine.flatMap((output, i) => {
    const text = difference(output, others[i]);
    return text === "" ? [] : [`${output.name}, ${text}`];
  });
  const equal = mine.filter((output, i) => JSON.stringify(output) === JSON.stringify(others[i]));
  for (const line of wrong) console.error(`differs: ${line}`);
  console.log(
    `${mine.length} outputs compared: ${equal.length} equal to the bit, ${wrong.length} beyond the rounding of their type`,
  );
  process.exitCode = wrong.length > 0 || mine.length === 0 ? 1 : 0;
}
