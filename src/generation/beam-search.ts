// Beam search: the texts that are most probable as a whole. Beams share the pages of what they have in common.
import { anInstance, checkArgument } from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions } from "../tensor/options.js";
import type { Candidate } from "./beam-scores.js";
import { BeamScores } from "./beam-scores.js";
import type { Branch, Next } from "./branch.js";
import { Engine } from "./engine.js";
import type { Prompt, TextPrompt } from "./prompt.js";
import { encodePrompt } from "./prompt.js";
import type { Settings, TextOptions } from "./settings.js";
import { newTokens, rulesOfText, settingsOf, textTable, throwIfAborted } from "./settings.js";
import type { FinishReason } from "./text.js";

const anEngine = anInstance(() => Engine, "an Engine");

/** A text found. */
export interface Beam {
  /** New tokens, with the one that ended it. */
  readonly tokens: readonly number[];
  /** Sum of log-probabilities / length ^ lengthPenalty. */
  readonly score: number;
  readonly finishReason: FinishReason;
}

interface Running {
  readonly branch: Branch;
  readonly tokens: readonly number[];
  readonly sum: number;
}

/**
 * The best texts that follow `prompt`, best first: those with the largest sum of log-probabilities, divided by their length
 * to `lengthPenalty`. Equal to transformers' beam search. `model.complete(prompt, { numBeams })` gives their texts.
 *
 * `numBeams` is at least 4 unless the options say less. Penalties, biases and what may not come change the
 * log-probabilities, not the logits.
 *
 * @example
 * const [best] = await beamSearch(engine, ids, { numBeams: 4, eosTokenId: 2 });
 */
export async function beamSearch(
  engine: Engine,
  prompt: Prompt | TextPrompt,
  options: TextOptions = {},
): Promise<Beam[]> {
  const op = "beamSearch";
  checkArgument(op, "engine", engine, anEngine);
  checkOptions(op, options, textTable);
  const { numBeams = Math.max(engine.model.generationConfig.numBeams ?? 1, 4) } = options;
  const settings = settingsOf(op, engine.model, { ...options, numBeams });
  return searchBeams(op, engine, await encodePrompt(op, engine.model, prompt), settings);
}

/** @internal The same for ids and settings that were checked. */
export async function searchBeams(op: string, engine: Engine, ids: Int32Array, settings: Settings): Promise<Beam[]> {
  const { config, ends, stopStrings } = settings;
  const { numBeams = 1, numReturnSequences = 1, lengthPenalty = 1, earlyStopping = false, signal } = config;
  if (stopStrings.length > 0) {
    throw new BnbError("ERR_BNB_OPTION", `${op}: stopStrings must come without beams, got numBeams: ${numBeams}`);
  }
  const { vocabSize } = engine.model.config;
  const count = newTokens(op, ids.length, settings, engine.maxLength);
  // As many as that cannot all have ended.
  const best = numBeams * Math.max(2, 1 + ends.length);
  const scores = new BeamScores(op, config, rulesOfText(op, settings, ids.length, vocabSize), ids.length, best);
  throwIfAborted(op, signal);
  if (count === 0) return [];

  const score = (sum: number, length: number) => sum / length ** lengthPenalty;
  const beam = ({ from, token, sum }: Candidate<Running>, length: number): Beam => {
    const finishReason = ends.includes(token) ? "stop" : "length";
    return { tokens: [...from.tokens, token], score: score(sum, length), finishReason };
  };
  const { telling } = scores;
  let finished: Beam[] = [];
  let running: Running[] = [{ branch: engine.open(ids, { telling }), tokens: [], sum: 0 }];
  try {
    for (let length = 1; ; length++) {
      const answers = await Promise.all(running.map(({ branch }) => branch.next().then(([next]) => next as Next)));
      throwIfAborted(op, signal);
      const candidates = running
        .flatMap((from, i) => scores.candidates(from, answers[i] as Next))
        .sort((a, b) => b.sum - a.sum)
        .slice(0, best);
      const isEnd = ({ token }: Candidate<Running>) => length === count || ends.includes(token);
      if (!(earlyStopping === true && finished.length >= numBeams)) {
        const ended = candidates.slice(0, numBeams).filter(isEnd);
        finished = [...finished, ...ended.map((candidate) => beam(candidate, length))];
        finished = finished.sort((a, b) => b.score - a.score).slice(0, numBeams);
      }
      running = goOn(running, candidates.filter((candidate) => !isEnd(candidate)).slice(0, numBeams));
      const [first] = running;
      if (!first) break;
      const isFull = finished.length >= numBeams;
      if (isFull && earlyStopping === true) break;
      const hoped = earlyStopping === "never" && lengthPenalty > 0 ? count : length;
      if (isFull && score(first.sum, hoped) <= (finished.at(-1) as Beam).score) break;
    }
  } finally {
    for (const { branch } of running) branch.dispose();
  }
  return finished.slice(0, numReturnSequences);
}

/** The beams of the next step: the first that follows one takes over its branch, others fork it. */
function goOn(running: readonly Running[], chosen: readonly Candidate<Running>[]): Running[] {
  const taken = new Set<Running>();
  const branches = chosen.map(({ from }) => {
    if (taken.has(from)) return from.branch.fork();
    taken.add(from);
    return from.branch;
  });
  for (const old of running) if (!taken.has(old)) old.branch.dispose();
  return chosen.map(({ from, token, sum }, i) => {
    const branch = branches[i] as Branch;
    branch.push(token);
    return { branch, tokens: [...from.tokens, token], sum };
  });
}
