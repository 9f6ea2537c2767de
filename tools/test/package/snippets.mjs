// Programs that use the package as its users do.
import { readFileSync } from "node:fs";

/** The least that shows a binary at work. */
export const sum = `import { ones } from "bitsandbytes-node";
import { Linear } from "bitsandbytes-node/nn";
import { AdamW8bit } from "bitsandbytes-node/optim";
const y = ones([2, 3]).add(1).sum();
if ((await y.item()) !== 12) throw new Error(String(await y.item()));
console.log(typeof Linear, typeof AdamW8bit);
`;

/** The JavaScript of the README. */
export const snippets = () =>
  [...readFileSync("README.md", "utf8").matchAll(/```js\n(.*?)```/gs)].map((match) => match[1] ?? "");

/**
 * The same program with require.
 * @param {string} code
 */
export function asCommonJs(code) {
  const body = code
    .replace(
      /^import \{([^}]*)\} from ("[^"]*");$/gm,
      (_, names, from) => `const {${names.replaceAll(" as ", ": ")}} = require(${from});`,
    )
    .replace(/^import \* as (\w+) from ("[^"]*");$/gm, "const $1 = require($2);")
    .replace(/^import (\w+) from ("[^"]*");$/gm, "const $1 = require($2);")
    .replaceAll("import.meta.url", "__filename");
  return `(async () => {\n${body}})().catch((error) => { console.error(error); process.exit(1); });\n`;
}
