// One text as an async iterator over a branch of an engine: its end, its signal, its guesses.
import type { GrammarText } from "../hub/grammars.js";
import { BnbError } from "../tensor/errors.js";
import type { Branch, Next } from "./branch.js";
import { PromptLookup } from "./prompt-lookup.js";
import { hasPenalties } from "./sampling.js";
import type { Settings } from "./settings.js";
import { throwIfAborted } from "./settings.js";
import type { TextStream } from "./text-stream.js";

/** A token, and what became certain of the text with it. */
export interface Made {
  readonly next: Next;
  readonly text: string;
}

/** Why a text ended: by its own end or a stop string, or because it may not be longer. */
export type FinishReason = "stop" | "length";

/**
 * Yields at most `count` tokens that follow those of a branch, and disposes it. Where `stream` is given the last item may be
 * a text without a token.
 */
export async function* continueText(
  op: string,
  branch: Branch,
  settings: Settings,
  count: number,
  stream: TextStream | null,
  grammar: GrammarText | null = null,
): AsyncGenerator<Partial<Made>, FinishReason, undefined> {
  const { config, draw, ends } = settings;
  const { signal } = config;
  // The counts of penalties would remember guesses that were wrong, and a grammar tells of one token.
  const mayGuess = !hasPenalties(draw) && !branch.isSteady && !grammar;
  const lookup = config.promptLookup === true && mayGuess ? new PromptLookup() : null;
  const abort = () => branch.dispose();
  signal?.addEventListener?.("abort", abort, { once: true });
  let made = 0;
  let reason: FinishReason = "length";
  try {
    all: while (made < count) {
      for (const next of await nextTokens(op, branch, count - made, lookup)) {
        throwIfAborted(op, signal);
        made++;
        const isEnd = ends.includes(next.id);
        const [text = ""] = isEnd ? [] : await Promise.all([stream?.push(next.id), grammar?.accept(next.id)]);
        const isStopped = isEnd || stream?.isStopped === true || grammar?.isOver === true;
        yield { next, text };
        if (isStopped) {
          reason = "stop";
          break all;
        }
      }
    }
    const rest = (await stream?.end()) ?? "";
    if (rest !== "") yield { text: rest };
    return reason;
  } catch (error) {
    // Aborted while it waited for its turn.
    throwIfAborted(op, signal);
    throw error;
  } finally {
    signal?.removeEventListener?.("abort", abort);
    branch.dispose();
  }
}

/** One token or, where guesses came true, more, at most `room`; all but the last are in the branch already. */
async function nextTokens(op: string, branch: Branch, room: number, lookup: PromptLookup | null): Promise<Next[]> {
  const known = branch.ids.length;
  const guesses = lookup?.propose(branch.ids, Math.min(room, branch.maxLength - known + 1) - 1) ?? [];
  // Tokens beyond which positions turn otherwise come one by one.
  while (guesses.length > 0 && branch.turns?.isOther(known, known + guesses.length)) guesses.pop();
  branch.push(...guesses);
  const began = performance.now();
  const drawn = await branch.next(1 + guesses.length);
  for (const next of drawn) checkDrawn(op, next);
  let right = 0;
  while (right < guesses.length && guesses[right] === drawn[right]?.id) right++;
  branch.truncate(known + right);
  const tokens = drawn.slice(0, right + 1);
  lookup?.report(guesses.length, tokens.length, performance.now() - began);
  if (branch.ids.length < branch.maxLength) branch.push((tokens.at(-1) as Next).id);
  return tokens;
}

/** Throws ERR_BNB_NONFINITE where no token was drawn. */
export function checkDrawn(op: string, { id }: Next): void {
  if (id >= 0) return;
  const rule = "no token can be drawn: the logits must be finite and a token allowed";
  throw new BnbError("ERR_BNB_NONFINITE", `${op}: ${rule}, got NaN, infinity or nothing that is allowed`);
}
