// The types of sass.mjs, for its test.
export interface Loop {
  start: number;
  length: number;
  path: number;
}
export function loops(code: Buffer): Loop[];
