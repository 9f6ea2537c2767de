// The types of cubin.mjs, for its test.
export interface Figures {
  registers: number;
  spill: number;
  stack: number;
  shared: number;
  code: number;
  loop: number;
}
export interface Table {
  compiler: string;
  archs: string[];
  /** "file<tab>kernel" to architecture to figures. */
  rows: Map<string, Map<string, Figures>>;
}
export interface Finding {
  file: string;
  message: string;
}
export const figures: (keyof Figures)[];
export function parsePtxas(text: string): Map<string, Omit<Figures, "code" | "loop">>;
export function sections(elf: Buffer): Map<string, Buffer>;
export function mainLoop(code: Buffer): number;
export function measure(report: string, cubin: Buffer): Map<string, Figures>;
export function shortNames(demangled: string[]): string[];
export function formatTable(table: Table): string;
export function parseTable(text: string): Table;
export function compare(
  committed: Table,
  measured: Table,
  files: string[],
  archs: string[],
): { wrong: Finding[]; shrunk: Finding[]; sameCompiler: boolean };
export function instructionsPerElement(text: string, measured: Table, archs: string[]): string[];
