// The `bnb` command in this process, what it writes captured.

import type { CommandContext } from "../../src/cli/command.js";
import { main } from "../../src/cli/main.js";

/** Takes text as a stream does. */
export class Sink {
  text = "";
  write(text: string): boolean {
    this.text += text;
    return true;
  }
}

export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a command line. */
export function bnb(...args: string[]): Promise<Ran> {
  return bnbWith({}, ...args);
}

/** Runs a command line with an input, or with interrupts. */
export async function bnbWith(context: Pick<CommandContext, "stdin" | "interrupts">, ...args: string[]): Promise<Ran> {
  const [stdout, stderr] = [new Sink(), new Sink()];
  const code = await main(args, { stdout, stderr, ...context });
  return { code, stdout: stdout.text, stderr: stderr.text };
}

/** Runs a command line with --json, and gives what it printed. */
export async function bnbJson<T>(...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await bnb(...args, "--json");
  if (code !== 0) throw new Error(`bnb ${args.join(" ")} ended with ${code}: ${stderr}`);
  return JSON.parse(stdout) as T;
}
