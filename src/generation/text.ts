// One text as an async iterator over a branch of an engine: its end, its signal, its guesses.
import { BnbError } from "../tensor/errors.js";
import type { Branch, Next } from "./branch.js";
import { PromptLookup } from "./prompt-lookup.js";
import { hasPenalties } from "./sampling.js";
import type { TextOptions } from "./text-options.js";
import { newTokens, throwIfAborted } from "./text-options.js";

/** Yields what follows the tokens of a branch, and disposes it. */
export async function* continueText(branch: Branch, options: TextOptions): AsyncGenerator<number, void, undefined> {
  const { maxNewTokens = 128, stop = [], signal } = options;
  const made: number[] = [];
  const isEnd = typeof stop === "function" ? () => stop(made) : () => stop.includes(made.at(-1) as number);
  const count = newTokens(branch.ids.length, maxNewTokens, branch.maxLength);
  // The counts of penalties would remember guesses that were wrong.
  const lookup = options.promptLookup === true && !hasPenalties(options) ? new PromptLookup() : null;
  const abort = () => branch.dispose();
  signal?.addEventListener?.("abort", abort, { once: true });
  try {
    while (made.length < count) {
      for (const token of await nextTokens(branch, count - made.length, lookup)) {
        throwIfAborted(signal);
        made.push(token);
        yield token;
        if (isEnd()) return;
        throwIfAborted(signal);
      }
    }
  } catch (error) {
    // Aborted while it waited for its turn.
    throwIfAborted(signal);
    throw error;
  } finally {
    signal?.removeEventListener?.("abort", abort);
    branch.dispose();
  }
}

/** One token or, where guesses came true, more, at most `room`; all but the last are in the branch already. */
async function nextTokens(branch: Branch, room: number, lookup: PromptLookup | null): Promise<number[]> {
  const known = branch.ids.length;
  const guesses = lookup?.propose(branch.ids, Math.min(room, branch.maxLength - known + 1) - 1) ?? [];
  branch.push(...guesses);
  const began = performance.now();
  const drawn = (await branch.next(1 + guesses.length)).map(idOf);
  let right = 0;
  while (right < guesses.length && guesses[right] === drawn[right]) right++;
  branch.truncate(known + right);
  const tokens = drawn.slice(0, right + 1);
  lookup?.report(guesses.length, tokens.length, performance.now() - began);
  if (branch.ids.length < branch.maxLength) branch.push(tokens.at(-1) as number);
  return tokens;
}

/** @internal The token drawn; throws ERR_BNB_NONFINITE where there is none. */
export function idOf({ id }: Next): number {
  if (id >= 0) return id;
  throw new BnbError(
    "ERR_BNB_NONFINITE",
    "generate: no token can be drawn: the logits must be finite, got NaN or infinity",
  );
}
