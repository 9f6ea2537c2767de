// How a model is printed: as PyTorch prints one, each module under its name on disk, and equal neighbours once.

/** What of a module is printed. */
interface Printable {
  members(): readonly { field: string; name: string | null; value: object }[];
  details(): string;
}

interface Line {
  readonly name: string;
  readonly text: string;
}

/** The tree of a module. `details` says what stands in the parentheses of one that has no children. */
export function printModule(module: Printable): string {
  const children: Line[] = module
    .members()
    .flatMap(({ name, field, value }) =>
      isPrintable(value) ? [{ name: name ?? field, text: printModule(value) }] : [],
    );
  const { name: type } = module.constructor;
  const details = module.details();
  if (children.length === 0) return `${type}(${details})`;
  const lines = grouped(children).map(({ name, text }) => `  (${name}): ${text.replaceAll("\n", "\n  ")}`);
  return [`${type}(${details}`, ...lines, ")"].join("\n");
}

const isPrintable = (value: object): value is Printable => "members" in value && "details" in value;

/** Numbered neighbours that are equal, as one line. */
function grouped(lines: readonly Line[]): Line[] {
  const groups: { first: string; last: string; text: string; count: number }[] = [];
  for (const { name, text } of lines) {
    const group = groups.at(-1);
    if (group && group.text === text && /^\d+$/.test(name)) {
      group.last = name;
      group.count++;
    } else {
      groups.push({ first: name, last: name, text, count: 1 });
    }
  }
  return groups.map(({ first, last, text, count }) =>
    count === 1 ? { name: first, text } : { name: `${first}-${last}`, text: `${count} x ${text}` },
  );
}
