#!/usr/bin/env node
// The `bnb` command: finds the subcommand, prints help and errors. Each command is one file in commands/.
import { readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { withNearest } from "../tensor/nearest.js";
import type { Command, CommandContext } from "./command.js";
import { Interrupts } from "./interrupts.js";
import { printable } from "./terminal.js";

/** Commands are loaded when called, so that help and version need no native library. */
const commands: Record<string, { summary: string; load: () => Promise<Command> }> = {
  doctor: {
    summary: "show versions, devices and the instruction set in use, and whether they compute",
    load: async () => (await import("./commands/doctor.js")).doctor,
  },
  estimate: {
    summary: "say what memory a model needs, and which card holds it",
    load: async () => (await import("./commands/estimate.js")).estimate,
  },
  inspect: {
    summary: "list the tensors of a model, their formats and sizes",
    load: async () => (await import("./commands/inspect.js")).inspect,
  },
  quantize: {
    summary: "save a model in 4 or 8 bits, and say what each layer lost",
    load: async () => (await import("./commands/quantize.js")).quantize,
  },
  dequantize: {
    summary: "save a quantized model with float weights",
    load: async () => (await import("./commands/dequantize.js")).dequantize,
  },
  finetune: {
    summary: "train adapters for a model from a file of samples, by QLoRA",
    load: async () => (await import("./commands/finetune.js")).finetune,
  },
  merge: {
    summary: "save a model with an adapter in its weights",
    load: async () => (await import("./commands/merge.js")).merge,
  },
  eval: {
    summary: "measure the perplexity of a text, in several formats side by side",
    load: async () => (await import("./commands/eval.js")).evaluation,
  },
  generate: {
    summary: "print what a model writes after a prompt",
    load: async () => (await import("./commands/generate.js")).generate,
  },
  chat: {
    summary: "talk with a model",
    load: async () => (await import("./commands/chat.js")).chat,
  },
  serve: {
    summary: "serve a model over HTTP, as OpenAI's API",
    load: async () => (await import("./commands/serve.js")).serve,
  },
  "make-model": {
    summary: "write a small random model with its tokenizer, to try everything without a network",
    load: async () => (await import("./commands/make-model.js")).makeModel,
  },
  build: {
    summary: "make the native binary from source, where there is no prebuilt one",
    load: async () => (await import("./commands/build.js")).build,
  },
  demo: {
    summary: "train, quantize, fine-tune and generate on real text, and write a report",
    load: async () => (await import("./commands/demo.js")).demo,
  },
};

const width = Math.max(...Object.keys(commands).map(({ length }) => length));
const help = `Usage: bnb <command> [options]

Commands:
${Object.entries(commands)
  .map(([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`)
  .join("\n")}

A <model> is a folder with a config.json, or an id of the Hugging Face hub such as Qwen/Qwen3-0.6B.

Options:
  -h, --help     show this help, or that of a command
  -v, --version  show the version
`;

/** Ctrl-C, as shells report it. */
const INTERRUPTED = 130;

/** Runs a command line. Exit codes: 0 done, 1 the work failed or a claim does not hold, 2 wrong usage, 130 Ctrl-C. */
export async function main(
  args: readonly string[],
  { stdout, stderr, stdin, interrupts }: Omit<CommandContext, "version"> = process,
): Promise<number> {
  const [name = "", ...rest] = args;
  if (name === "" || name === "-h" || name === "--help" || (name === "help" && rest.length === 0)) {
    (name === "" ? stderr : stdout).write(help);
    return name === "" ? 2 : 0;
  }
  const version = packageVersion();
  if (name === "-v" || name === "--version") {
    stdout.write(`${version}\n`);
    return 0;
  }
  if (name === "help") return main([rest[0] as string, "--help"], { stdout, stderr });
  const entry = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!entry) {
    stderr.write(`bnb: unknown command ${withNearest(name, Object.keys(commands))}\nTry "bnb --help".\n`);
    return 2;
  }
  const options = rest.slice(0, rest.includes("--") ? rest.indexOf("--") : rest.length);
  try {
    const command = await entry.load();
    if (options.includes("-h") || options.includes("--help")) {
      stdout.write(command.help(name));
      return 0;
    }
    return await command.run(rest, {
      stdout,
      stderr,
      version,
      ...(stdin && { stdin }),
      ...(interrupts && { interrupts }),
    });
  } catch (error) {
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (interrupts?.signal.aborted) {
      stderr.write(`bnb ${name}: stopped\n`);
      return INTERRUPTED;
    }
    if (options.includes("--debug")) stderr.write(`${printable(String((error as Error).stack))}\n`);
    else {
      const hint = code.startsWith("ERR_BNB") ? "" : " (unexpected; --debug shows where)";
      stderr.write(`bnb ${name}: ${printable(message)}${hint}\n`);
    }
    // Only what was typed is given as an argument.
    if (code !== "ERR_BNB_OPTION" && code !== "ERR_BNB_ARGUMENT") return 1;
    stderr.write(`Try "bnb ${name} --help".\n`);
    return 2;
  }
}

/** The version in package.json. */
function packageVersion(): string {
  const manifest = readFileSync(join(__dirname, "..", "..", "package.json"), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}

/** What is printed gets nowhere. Where nobody reads any more, as in `bnb demo | head -1`, it ends as SIGPIPE ends a program. */
function endWithout(output: string, { code, message }: NodeJS.ErrnoException): never {
  if (code === "EPIPE") process.exit(141);
  try {
    // The stream would tell of its own failure later, to nobody.
    writeSync(2, `bnb: ${output} could not be written: ${message}\n`);
  } catch {
    // There is no place left to say it.
  }
  process.exit(1);
}

// Tests import this file; only as the program it runs by itself.
if (typeof require !== "undefined" && require.main === module) {
  process.stdout.on("error", (error) => endWithout("the standard output", error));
  process.stderr.on("error", (error) => endWithout("the standard error", error));
  const interrupts = new Interrupts();
  process.on("SIGINT", () => {
    if (!interrupts.fire()) process.exit(INTERRUPTED);
  });
  // Warnings are for people here: one line, without Node's own words.
  process.removeAllListeners("warning");
  process.on("warning", ({ message }) => process.stderr.write(`bnb: ${printable(message)}\n`));
  const { stdout, stderr, stdin } = process;
  void main(process.argv.slice(2), { stdout, stderr, stdin, interrupts }).then((code) => {
    process.exitCode = code;
  });
}
