// What a subcommand of `bnb` is, and where it writes.

/** A place to write text to; `process.stdout` is one. */
export interface Output {
  write(text: string): unknown;
  isTTY?: boolean;
}

/** What a command gets besides its arguments. */
export interface CommandContext {
  stdout: Output;
  stderr: Output;
  /** The version of the package. */
  version: string;
}

/** A subcommand. */
export interface Command {
  /** Printed by `--help`. */
  help: string;
  /** Returns the exit code; throws what `parseArgs` throws on a wrong argument. */
  run(args: string[], context: CommandContext): Promise<number>;
}
