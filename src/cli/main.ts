#!/usr/bin/env node
// The `bnb` command: finds the subcommand, prints help and errors. Each command is one file in commands/.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Command, CommandContext } from "./command.js";

/** Commands are loaded when called, so that help and version need no native library. */
const commands: Record<string, { summary: string; load: () => Promise<Command> }> = {
  demo: {
    summary: "train, quantize, fine-tune and generate on real text, and write a report",
    load: async () => (await import("./commands/demo.js")).demo,
  },
  info: {
    summary: "show versions, devices and the instruction set in use",
    load: async () => (await import("./commands/info.js")).info,
  },
};

const help = `Usage: bnb <command> [options]

Commands:
${Object.entries(commands)
  .map(([name, { summary }]) => `  ${name.padEnd(8)} ${summary}`)
  .join("\n")}

Options:
  -h, --help     show this help, or that of a command
  -v, --version  show the version
`;

/** Runs a command line. Exit codes: 0 done, 1 the work failed or a claim does not hold, 2 wrong usage. */
export async function main(
  args: readonly string[],
  { stdout, stderr }: Pick<CommandContext, "stdout" | "stderr"> = process,
): Promise<number> {
  const [name = "", ...rest] = args;
  if (name === "" || name === "-h" || name === "--help" || name === "help") {
    (name === "" ? stderr : stdout).write(help);
    return name === "" ? 2 : 0;
  }
  const version = packageVersion();
  if (name === "-v" || name === "--version") {
    stdout.write(`${version}\n`);
    return 0;
  }
  const entry = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!entry) {
    stderr.write(`bnb: unknown command "${name}"\n\n${help}`);
    return 2;
  }
  try {
    const command = await entry.load();
    if (rest.includes("-h") || rest.includes("--help")) {
      stdout.write(command.help);
      return 0;
    }
    return await command.run(rest, { stdout, stderr, version });
  } catch (error) {
    const { code = "", message } = error as NodeJS.ErrnoException;
    const isUsage = code.startsWith("ERR_PARSE_ARGS") || code === "ERR_BNB_OPTION" || code === "ERR_BNB_ARGUMENT";
    stderr.write(isUsage || code.startsWith("ERR_BNB") ? `bnb ${name}: ${message}\n` : `${(error as Error).stack}\n`);
    if (isUsage) stderr.write(`Try "bnb ${name} --help".\n`);
    return isUsage ? 2 : 1;
  }
}

/** The version in package.json. */
function packageVersion(): string {
  const manifest = readFileSync(join(__dirname, "..", "..", "package.json"), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}

/** Nobody reads any more, as in `bnb demo | head -1`: ends as a program that the signal SIGPIPE ended. */
function endQuietly(error: NodeJS.ErrnoException): void {
  if (error.code !== "EPIPE") throw error;
  process.exit(141);
}

// Tests import this file; only as the program it runs by itself.
if (typeof require !== "undefined" && require.main === module) {
  for (const output of [process.stdout, process.stderr]) output.on("error", endQuietly);
  void main(process.argv.slice(2)).then((code) => {
    process.exitCode = code;
  });
}
