// Beam search: the texts that are most probable as a whole. Beams share the pages of what they have in common.
import {
  aBoolean,
  aFiniteNumber,
  anInstance,
  anInteger,
  arrayOf,
  checkArgument,
  either,
  oneOf,
} from "../tensor/checks.js";
import { BnbError } from "../tensor/errors.js";
import { checkOptions, optionTable } from "../tensor/options.js";
import type { Branch, Next } from "./branch.js";
import { Engine } from "./engine.js";
import type { Prompt } from "./text-options.js";
import { newTokens, promptIds } from "./text-options.js";

/** Options of `beamSearch`, with the meaning that transformers gives them. */
export interface BeamOptions {
  /** Texts kept at each step. Default 4. */
  numBeams?: number;
  /** Texts returned; default 1. */
  numReturnSequences?: number;
  /** Scores are divided by the number of new tokens to this power. Default 1. */
  lengthPenalty?: number;
  /**
   * true: stop when `numBeams` have ended; false (default): when the best that goes on could not become better now; "never":
   * when it could not by the maximal length.
   */
  earlyStopping?: boolean | "never";
  /** Token ids that end a text. */
  stop?: readonly number[];
  /** Default 128. */
  maxNewTokens?: number;
}
const beamOptions = optionTable<BeamOptions>({
  numBeams: anInteger(1),
  numReturnSequences: anInteger(1),
  lengthPenalty: aFiniteNumber,
  earlyStopping: either(aBoolean, oneOf(["never"])),
  stop: arrayOf(anInteger(0), "an array of token ids"),
  maxNewTokens: anInteger(0),
});

const anEngine = anInstance(() => Engine, "an Engine");

/** A text found. */
export interface Beam {
  /** New tokens, with the one that ended it. */
  readonly tokens: readonly number[];
  /** Sum of log-probabilities / length ^ lengthPenalty. */
  readonly score: number;
}

interface Running {
  readonly branch: Branch;
  readonly tokens: readonly number[];
  readonly sum: number;
}

interface Candidate {
  readonly from: Running;
  readonly token: number;
  readonly sum: number;
}

/**
 * The best texts that follow `prompt`, best first: those with the largest sum of log-probabilities, divided by their length
 * to `lengthPenalty`. Equal to transformers' beam search.
 *
 * @example
 * const [best] = await beamSearch(engine, ids, { numBeams: 4, stop: [2] });
 */
export async function beamSearch(engine: Engine, prompt: Prompt, options: BeamOptions = {}): Promise<Beam[]> {
  checkArgument("beamSearch", "engine", engine, anEngine);
  checkOptions("beamSearch", options, beamOptions);
  const { numBeams = 4, numReturnSequences = 1, lengthPenalty = 1, earlyStopping = false, stop = [] } = options;
  if (numReturnSequences > numBeams) {
    const rule = `numReturnSequences must be at most numBeams, ${numBeams}`;
    throw new BnbError("ERR_BNB_OPTION", `beamSearch: ${rule}, got ${numReturnSequences}`);
  }
  // As many as that cannot all have ended.
  const best = numBeams * Math.max(2, 1 + stop.length);
  if (best > 20) {
    const rule = "numBeams * (1 + ids in stop, at least 1) must be at most 20";
    throw new BnbError("ERR_BNB_OPTION", `beamSearch: ${rule}, got ${best}`);
  }
  const ids = promptIds(prompt, engine.model.config);
  const count = newTokens(ids.length, options.maxNewTokens ?? 128, engine.maxLength);
  if (count === 0) return [];

  const score = (sum: number, length: number) => sum / length ** lengthPenalty;
  let finished: Beam[] = [];
  let running: Running[] = [{ branch: engine.open(ids, { telling: { logprobs: true, best } }), tokens: [], sum: 0 }];
  try {
    for (let length = 1; ; length++) {
      const answers = await Promise.all(running.map(({ branch }) => branch.next().then(([next]) => next as Next)));
      const candidates = running
        .flatMap((from, i) => candidatesOf(from, answers[i] as Next))
        .sort((a, b) => b.sum - a.sum)
        .slice(0, best);
      const ends = ({ token }: Candidate) => length === count || stop.includes(token);
      if (!(earlyStopping === true && finished.length >= numBeams)) {
        const ended = candidates.slice(0, numBeams).filter(ends);
        finished = [...finished, ...ended.map(({ from, token, sum }) => beam(from, token, score(sum, length)))];
        finished = finished.sort((a, b) => b.score - a.score).slice(0, numBeams);
      }
      running = goOn(running, candidates.filter((candidate) => !ends(candidate)).slice(0, numBeams));
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

function candidatesOf(from: Running, { bestIds, bestLogprobs, id }: Next): Candidate[] {
  if (id < 0) throw new BnbError("ERR_BNB_NONFINITE", "beamSearch: the logits must be finite, got NaN or infinity");
  return Array.from(bestIds, (token, i) => ({ from, token, sum: from.sum + (bestLogprobs[i] as number) })).filter(
    ({ token, sum }) => token >= 0 && sum > -Infinity,
  );
}

function beam(from: Running, token: number, score: number): Beam {
  return { tokens: [...from.tokens, token], score };
}

/** The beams of the next step: the first that follows one takes over its branch, others fork it. */
function goOn(running: readonly Running[], chosen: readonly Candidate[]): Running[] {
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
