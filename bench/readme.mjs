// npm run bench -- --readme: writes the README's figures from bench/results, so that none is typed by hand.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";

/** @type {(name: string) => any} */
const read = (name) => JSON.parse(readFileSync(`bench/results/${name}.json`, "utf8"));
/** @type {(x: number) => string} */
const number = (x) => (x >= 100 ? Math.round(x) : Number(x.toPrecision(3))).toString();
/** @type {(file: any, label: string) => any} */
const of = (file, label) => {
  const found = file.results.find((/** @type {any} */ result) => result.case === label);
  if (!found) throw new Error(`bench/results/${file.name}.json has no case "${label}"`);
  return found;
};
/** @type {(value: any) => number} */
const median = (value) => (typeof value === "object" ? value.median : value);

const [linear, generate, quantize, optimizer, matmul, crossing, memory] = [
  "linear-4bit",
  "generate",
  "quantize",
  "optimizer",
  "matmul",
  "crossing",
  "memory",
].map(read);

/** Measured by its own, long run. */
const serve = existsSync("bench/results/serve.json") ? read("serve") : null;

const rows = [
  ...[1, 4, 16, 64].map((m) => {
    const r = of(linear, `M=${m} 4096x4096 vs MatMulBnb4`);
    return [
      `NF4 linear, 4096 x 4096, ${m} row${m > 1 ? "s" : ""}, exact float32`,
      `${number(median(r.ms))} ms`,
      `${number(median(r.timesFaster))} times as fast as onnxruntime-node's MatMulBnb4`,
    ];
  }),
  ...[1, 16, 64, 256].map((m) => {
    const r = of(linear, `M=${m} 4096x4096, activations in int8 vs MatMulNBits int8`);
    return [
      `the same, ${m === 1 ? "1 row" : `${m} rows`}, activations in int8`,
      `${number(median(r.ms))} ms`,
      `${number(median(r.timesFaster))} times as fast as its MatMulNBits with activations in int8`,
    ];
  }),
  ...generated(generate),
  ...[
    ["quantize4bit nf4 float32", "quantize to NF4, 16.8 M float32"],
    ["dequantize4bit nf4 nested float32", "dequantize nested NF4 to float32"],
    ["quantizeBlockwise 256 float32", "quantize to 8 bits in blocks of 256"],
  ].map(([label, text]) => {
    const r = of(quantize, label);
    return [text, `${number(r.Gelements)} G elements/s`, `${number(1 / r.copyOverOurs)} of the speed of a copy`];
  }),
  ...["AdamW8bit", "AdamW32bit", "Lion8bit"].map((label) => {
    const r = of(optimizer, label);
    const bytes = `${number(r.stateBytesPerParameter)} bytes of state a parameter`;
    return [`${label} step, 16.8 M float32 parameters`, `${number(r.gigaParametersPerSecond)} G parameters/s`, bytes];
  }),
  (() => {
    const r = of(matmul, "matmul 1024^3 float32");
    return [
      "float32 product, 1024 x 1024 x 1024",
      `${number(r.GFLOPs)} GFLOP/s`,
      `${number(100 * r.ofPeak)} % of the multiply-add peak`,
    ];
  })(),
  ...["silu [16] in tidy", "add [16] in tidy"].map((label) => {
    const r = of(crossing, label);
    return [
      `queueing \`${label.split(" ")[0]}\` of 16 elements from JavaScript`,
      `${number(median(r.us))} us`,
      `best ${number(r.best)} us`,
    ];
  }),
  ...memory.results.map((/** @type {any} */ r) => [
    `2000 training steps, ${r.case}`,
    `${number(r.rssMB)} MB of process memory`,
    `${number(r.rssRatio)} times that of a loop that disposes everything`,
  ]),
  ...(serve ? served(serve) : []),
];

/** @type {(file: any) => string[][]} */
function generated(file) {
  const model = "TinyLlama's shape in NF4, head in bfloat16";
  const decode = ["decode, 1 text", "decode, 8 texts"];
  const [one, oneInt8, eight, eightInt8] = decode
    .flatMap((label) => [label, `${label}, activations in int8`])
    .map((label) => of(file, label));
  const [exact, int8] = ["prompt of 512", "prompt of 512, activations in int8"].map((label) => of(file, label));
  const speed = (/** @type {any} */ r) => `${number(r.tokensPerSecond)} tokens/s`;
  const times = (/** @type {any} */ r, /** @type {any} */ than) => number(r.tokensPerSecond / than.tokensPerSecond);
  return [
    [`${model}: 1 text`, speed(one), `${number(100 * one.ofBandwidth)} % of what reading its weights allows`],
    ["the same, activations in int8", speed(oneInt8), `${times(oneInt8, one)} times as fast`],
    ["the same, 8 texts together", speed(eight), `${times(eight, one)} times one text`],
    ["the same, activations in int8", speed(eightInt8), `${times(eightInt8, eight)} times as fast`],
    ["the same, a prompt of 512 tokens", speed(exact), `${number(100 * exact.ofPeak)} % of the multiply-add peak`],
    ["the same, activations in int8", speed(int8), `${times(int8, exact)} times as fast`],
  ];
}

/** @type {(file: any) => string[][]} */
function served(file) {
  const clients = ["1 client", "8 clients", "64 clients"].map((label) => {
    const r = of(file, label);
    const waits = `first token ${number(r.firstTokenMsMedian)} ms, between tokens ${number(r.betweenTokensMsMedian)} ms`;
    return [
      `bnb serve, float32 model of ${file.model.layers} layers, ${file.model.hidden} wide, ${label}`,
      `${number(r.tokensPerSecond)} tokens/s`,
      waits,
    ];
  });
  const chats = of(file, "turns 2 to 5 of 8 chats");
  const cached = `${number(100 * chats.cachedShare)} % of their prompts computed before`;
  const first = `first token in ${number(100 * chats.ofFirstTurn)} % of the first turn's time`;
  return [...clients, ["bnb serve, turns 2 to 5 of 8 chats", cached, first]];
}

const { host } = linear;
// The files may come from several runs: each is named with its date, commit and machine.
const runs = new Map();
for (const [what, { date, commit, host: own }] of Object.entries({
  "4-bit linear": linear,
  generation: generate,
  quantization: quantize,
  optimizers: optimizer,
  products: matmul,
  queueing: crossing,
  "training memory": memory,
  ...(serve && { serving: serve }),
})) {
  const run = `${date}, commit ${commit}, on an ${own.cpu} (${own.isa})`;
  runs.set(run, [...(runs.get(run) ?? []), what]);
}
const when = [...runs].map(([run, what]) => `${what.join(", ")}: ${run}`).join("; ");
const text = [
  `Medians on ${host.threads} threads, Node ${host.node} (${when}):`,
  "",
  "| what | | |",
  "|---|---|---|",
  ...rows.map((row) => `| ${row.join(" | ")} |`),
].join("\n");

const readme = readFileSync("README.md", "utf8");
const marked = /(<!-- figures:[^\n]*-->\n)[\s\S]*?(\n?<!-- end of figures -->)/;
if (!marked.test(readme)) throw new Error("README.md has no place for figures");
writeFileSync("README.md", readme.replace(marked, `$1\n${text}\n\n<!-- end of figures -->`));
spawnSync("node_modules/.bin/biome", ["format", "--write", "README.md"], { stdio: "inherit" });
