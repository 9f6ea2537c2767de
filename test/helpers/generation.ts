// Options as transformers' fixtures have them.

/** `{ num_beams: 4 }` as `{ numBeams: 4 }`. */
export function camel(options: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const name = (key: string) => key.replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(options).map(([key, value]) => [name(key), value]));
}
