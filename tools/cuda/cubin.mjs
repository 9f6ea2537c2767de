// What a compiled CUDA kernel costs, and whether it may: reads ptxas's report and a cubin's sections, and compares
// figures with those of the committed table, tools/cuda/budget.tsv. Nothing here runs a program or touches a file.
import { loops } from "./sass.mjs";

/** @typedef {{ registers: number, spill: number, stack: number, shared: number }} Reported by ptxas */
/** @typedef {Reported & { code: number, loop: number }} Figures */
/** @typedef {Map<string, Map<string, Figures>>} Rows "file<tab>kernel" to architecture to figures */
/** @typedef {{ compiler: string, archs: string[], rows: Rows }} Table */
/** @typedef {{ file: string, message: string }} Finding */

/**
 * A kernel's figures, in the order in which a cell of the table lists them: registers, bytes, and the instructions of
 * one turn of the main loop, 0 without one.
 */
export const figures = /** @type {const} */ (["registers", "spill", "stack", "shared", "code", "loop"]);
/** A figure may grow by this factor before the table must say so. The stack may not grow, and nothing may spill. */
const tolerated = { registers: 1.05, spill: Number.POSITIVE_INFINITY, stack: 1, shared: 1.05, code: 1.05, loop: 1.05 };

/**
 * The report of `ptxas -v`: per mangled kernel, everything that is not read off its code.
 * @param {string} text
 * @returns {Map<string, Reported>}
 */
export function parsePtxas(text) {
  const kernels = new Map();
  let name = null;
  let properties = null;
  for (const line of text.split("\n")) {
    const entry = /Compiling entry function '([^']+)'/.exec(line);
    if (entry) {
      name = entry[1];
      kernels.set(name, { registers: 0, spill: 0, stack: 0, shared: 0 });
    }
    // Functions that were not inlined have properties too; they are not kernels.
    properties = /Function properties for (\S+)/.exec(line)?.[1] ?? properties;
    const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (frame && kernels.has(properties)) {
      const spill = Number(frame[2]) + Number(frame[3]);
      Object.assign(kernels.get(properties), { stack: Number(frame[1]), spill });
    }
    const used = /Used (\d+) registers/.exec(line);
    if (used && name) {
      const shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0);
      Object.assign(kernels.get(name), { registers: Number(used[1]), shared });
    }
  }
  return kernels;
}

/**
 * The sections of a 64-bit little-endian ELF file, such as a cubin, by name.
 * @param {Buffer} elf
 * @returns {Map<string, Buffer>}
 */
export function sections(elf) {
  if (elf.readUInt32BE(0) !== 0x7f454c46 || elf[4] !== 2 || elf[5] !== 1) throw new Error("not a 64-bit ELF file");
  const start = Number(elf.readBigUInt64LE(0x28));
  const [entrySize, count, names] = [0x3a, 0x3c, 0x3e].map((at) => elf.readUInt16LE(at));
  /** @type {(i: number) => number} */
  const header = (i) => start + i * entrySize;
  /** @type {(i: number) => number} */
  const offset = (i) => Number(elf.readBigUInt64LE(header(i) + 0x18));
  /** @type {(i: number) => number} */
  const size = (i) => Number(elf.readBigUInt64LE(header(i) + 0x20));
  /** @type {(at: number) => string} */
  const text = (at) => elf.toString("latin1", at, elf.indexOf(0, at));
  const found = new Map();
  for (let i = 1; i < count; i++)
    found.set(text(offset(names) + elf.readUInt32LE(header(i))), elf.subarray(offset(i), offset(i) + size(i)));
  return found;
}

/**
 * The length of one turn of the main loop: the longest there is, or one in it that is at least a quarter as long.
 * @param {Buffer} code
 */
export function mainLoop(code) {
  const all = loops(code);
  /** @typedef {import("./sass.mjs").Loop} Loop */
  /** @type {(outer: Loop, l: Loop) => boolean} */
  const inside = (outer, l) => l !== outer && l.start >= outer.start && l.start < outer.start + outer.length;
  /** @type {(some: Loop[]) => Loop | undefined} */
  const longest = ([first, ...rest]) => rest.reduce((best, l) => (best && best.path >= l.path ? best : l), first);
  /** @type {(main: Loop) => number} */
  const within = (main) => {
    const next = longest(all.filter((l) => inside(main, l)));
    return next && next.path * 4 >= main.path ? within(next) : main.path;
  };
  const main = longest(all);
  return main ? within(main) : 0;
}

/**
 * The rows of one compiled file: mangled name to figures.
 * @param {string} report
 * @param {Buffer} cubin
 * @returns {Map<string, Figures>}
 */
export function measure(report, cubin) {
  const found = sections(cubin);
  return new Map(
    [...parsePtxas(report)].map(([name, kernel]) => {
      const code = found.get(`.text.${name}`);
      return [name, { ...kernel, code: code?.length ?? 0, loop: code ? mainLoop(code) : 0 }];
    }),
  );
}

/**
 * Demangled names as a reader wants them: without result, parameters and the namespaces that all kernels share.
 * @param {string[]} demangled
 */
export function shortNames(demangled) {
  const short = demangled.map((name) => {
    let end = name.length;
    if (name.endsWith(")")) {
      let depth = 0;
      do {
        end--;
        depth += name[end] === ")" ? 1 : name[end] === "(" ? -1 : 0;
      } while (depth > 0);
    }
    return withoutNamespaces(name.slice(0, end));
  });
  // Overloads keep what tells them apart.
  return short.map((name, i) =>
    short.indexOf(name) === short.lastIndexOf(name) ? name : withoutNamespaces(demangled[i]),
  );
}

/** @param {string} name */
function withoutNamespaces(name) {
  return name
    .replaceAll("(anonymous namespace)::", "")
    .replace(/\bbnb::(cuda::)?/g, "")
    .replace(/^void /, "")
    .replace(/>(?: >)+/g, (ends) => ends.replaceAll(" ", ""));
}

// --- the table: { compiler, archs, rows: Map of "file<tab>kernel" to Map of arch to figures } ---------------------

const heading = `# What each CUDA kernel costs per compute capability: ${figures.join(", ")}.
# All are bytes but the registers and the loop: the instructions of one turn of the main loop.
# npm run gates compares; npm run gates -- --write writes this file. Say in the commit why a kernel grew.
`;

/** @param {Table} table */
export function formatTable({ compiler, archs, rows }) {
  const lines = [...rows].map(([key, cells]) => {
    /** @type {(arch: string) => string} */
    const cell = (arch) => {
      const found = cells.get(arch);
      return found ? figures.map((figure) => found[figure]).join(" ") : "-";
    };
    return [key, ...archs.map(cell)].join("\t");
  });
  lines.sort((a, b) => (a < b ? -1 : 1));
  return `${heading}# ${compiler}\n${["file", "kernel", ...archs].join("\t")}\n${lines.map((line) => `${line}\n`).join("")}`;
}

/**
 * @param {string} text
 * @returns {Table}
 */
export function parseTable(text) {
  const lines = text.split("\n").filter(Boolean);
  const comments = lines.filter((line) => line.startsWith("#"));
  const [names, ...body] = lines.filter((line) => !line.startsWith("#")).map((line) => line.split("\t"));
  const archs = names?.slice(2) ?? [];
  const rows = new Map();
  for (const [file, kernel, ...cells] of body) {
    const found = new Map();
    for (const [i, arch] of archs.entries()) {
      const numbers = cells[i].split(" ").map(Number);
      if (cells[i] !== "-") found.set(arch, Object.fromEntries(figures.map((figure, j) => [figure, numbers[j]])));
    }
    rows.set(`${file}\t${kernel}`, found);
  }
  return { compiler: comments.at(-1)?.replace(/^# /, "") ?? "", archs, rows };
}

/**
 * What is wrong with the measured table against the committed one, and what has shrunk so much that the committed one
 * should follow: lists of { file, message }. `files` and `archs` are those that were measured. Another compiler
 * makes other code: then only spills count.
 * @param {Table} committed
 * @param {Table} measured
 * @param {string[]} files
 * @param {string[]} archs
 */
export function compare(committed, measured, files, archs) {
  /** @type {Finding[]} */
  const wrong = [];
  /** @type {Finding[]} */
  const shrunk = [];
  const sameCompiler = committed.rows.size === 0 || committed.compiler === measured.compiler;
  /** @type {(key: string) => boolean} */
  const among = (key) => files.includes(key.split("\t")[0]);
  for (const [key, cells] of measured.rows) {
    const [file, kernel] = key.split("\t");
    /** @type {(list: Finding[], message: string) => void} */
    const say = (list, message) => {
      list.push({ file, message: `${kernel}: ${message}` });
    };
    const known = committed.rows.get(key);
    if (!known && sameCompiler) say(wrong, "is not in the table");
    for (const [arch, now] of cells) {
      const before = known?.get(arch);
      if (now.spill > 0) say(wrong, `sm_${arch} spills ${now.spill} bytes`);
      if (!before) {
        if (known && sameCompiler) say(wrong, `sm_${arch} is not in the table`);
        continue;
      }
      for (const figure of figures) {
        if (!sameCompiler) continue;
        const change = `sm_${arch} ${figure} ${before[figure]} -> ${now[figure]}`;
        if (now[figure] > before[figure] * tolerated[figure]) say(wrong, change);
        else if (now[figure] * tolerated[figure] < before[figure]) say(shrunk, change);
      }
    }
  }
  for (const [key, cells] of committed.rows) {
    if (!sameCompiler || !among(key)) continue;
    const [file, kernel] = key.split("\t");
    const gone = [...cells.keys()].filter((arch) => archs.includes(arch) && !measured.rows.get(key)?.has(arch));
    if (gone.length > 0)
      wrong.push({ file, message: `${kernel}: in the table, but not compiled for sm_${gone.join(", ")}` });
  }
  return { wrong, shrunk, sameCompiler };
}

/**
 * The instructions per element of the main loops that tools/cuda/loops.tsv names, beside what the design allows: lines
 * of text. A row is file, kernel, least architecture, elements that a thread does in one turn, allowed.
 * @param {string} text
 * @param {Table} measured
 * @param {string[]} archs
 */
export function instructionsPerElement(text, measured, archs) {
  /** @type {string[]} */
  const lines = [];
  for (const row of text.split("\n").filter((line) => line && !line.startsWith("#"))) {
    const [file, kernel, from, elements, allowed] = row.split("\t");
    const cells = measured.rows.get(`${file}\t${kernel}`);
    if (!cells) continue;
    const each = archs.flatMap((arch) => {
      const cell = Number(arch) >= Number(from) && cells.get(arch);
      return cell ? [{ arch, count: cell.loop / Number(elements) }] : [];
    });
    if (each.length === 0) continue;
    const verdict = each.every(({ count }) => count <= Number(allowed)) ? "" : "  above the design";
    const counts = each.map(({ arch, count }) => `sm_${arch} ${count.toFixed(2)}`).join(", ");
    lines.push(`${kernel}: ${allowed} allowed: ${counts}${verdict}`);
  }
  return lines;
}
