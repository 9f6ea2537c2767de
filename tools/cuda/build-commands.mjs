// How the build compiles each CUDA file, read from the compile_commands.json that CMake writes.

/** @typedef {{ compiler: string, flags: string[] }} BuildCommand */

/**
 * The commands of the .cu files by path from the root, without what belongs to one output: its name and architectures. Those
 * that compile them for the emulated GPU are not among them.
 * @param {string} text compile_commands.json
 * @param {string} root what paths in it start with
 * @returns {Map<string, BuildCommand>}
 */
export function buildCommands(text, root) {
  /** @type {{ file: string, command: string }[]} */
  const entries = JSON.parse(text);
  /** @type {Map<string, BuildCommand>} */
  const commands = new Map();
  const emulated = /\s-DBNB_CUDA_EMULATE=1\s/;
  for (const { file, command } of entries) {
    if (!file.endsWith(".cu") || emulated.test(command)) continue;
    const words = command.split(" ").filter((word) => word !== "");
    // Before nvcc there may be a launcher, such as ccache.
    const first = words.findIndex((word) => /(^|\/)nvcc(\.exe)?$/.test(word));
    if (first < 0) throw new Error(`${file} is not compiled by nvcc: ${command}`);
    const [compiler = "", ...rest] = words.slice(first);
    const flags = rest
      .filter((word, i) => !["-c", "-o"].includes(word) && !["-c", "-o"].includes(rest[i - 1] ?? ""))
      .filter((word) => !/^(--generate-code|-gencode|-arch)\b/.test(word))
      .map((word) => word.replace(`${root}/`, ""));
    commands.set(file.replace(`${root}/`, ""), { compiler, flags });
  }
  return commands;
}
