// What /metrics tells, by the names of vLLM with the prefix bnb, so that its dashboards work.
import { monitorEventLoopDelay } from "node:perf_hooks";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Engine, EngineStats } from "../generation/index.js";

const seconds = {
  step: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5],
  token: [0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5],
  first: [0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60],
  whole: [0.1, 0.3, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600],
};
/** Milliseconds between looks at the event loop. */
const resolution = 10;

export class Metrics implements Disposable {
  readonly #registry = new Registry();
  readonly #loop = monitorEventLoopDelay({ resolution });
  readonly promptTokens = this.#counter("prompt_tokens_total", "Tokens of prompts");
  readonly madeTokens = this.#counter("generation_tokens_total", "Tokens that were made");
  readonly ended = this.#counter("request_success_total", "Texts that ended, by the reason", ["finished_reason"]);
  readonly firstToken = this.#histogram("time_to_first_token_seconds", "From a request to its first token", "first");
  readonly betweenTokens = this.#histogram("inter_token_latency_seconds", "Between two tokens of a text", "token");
  readonly whole = this.#histogram("e2e_request_latency_seconds", "From a request to the end of its answer", "whole");
  readonly steps = this.#histogram("engine_step_seconds", "Steps of the engine", "step");

  constructor(engine: Engine) {
    this.#gauge("num_requests_running", "Texts that have keys and values", () => engine.stats.running);
    this.#gauge("num_requests_waiting", "Texts that wait for pages or for their turn", () => engine.stats.waiting);
    this.#gauge("kv_cache_usage_perc", "Share of the pages that texts use, 0 to 1", () => {
      const { pages, freePages } = engine.stats;
      return (pages - freePages) / pages;
    });
    const told = (name: string, help: string, key: keyof EngineStats): void => {
      new Counter({
        name: `bnb:${name}`,
        help,
        registers: [this.#registry],
        collect() {
          this.reset();
          this.inc(engine.stats[key]);
        },
      });
    };
    told("prefix_cache_queries_total", "Tokens of prompts that were looked for among those computed", "prefixQueries");
    told("prefix_cache_hits_total", "Tokens of prompts that had been computed before", "prefixHits");
    told("num_preemptions_total", "Texts that lost their pages and were computed again", "preemptions");
    this.#loop.enable();
    this.#gauge("eventloop_lag_seconds", "How late the event loop was since the last look, 99th percentile", () => {
      const late = this.#loop.percentile(99) / 1e9 - resolution / 1000;
      this.#loop.reset();
      return Math.max(0, late);
    });
    engine.onStep = (duration) => this.steps.observe(duration);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  text(): Promise<string> {
    return this.#registry.metrics();
  }

  [Symbol.dispose](): void {
    this.#loop.disable();
  }

  #counter<const L extends string = never>(name: string, help: string, labelNames: readonly L[] = []): Counter<L> {
    return new Counter<L>({ name: `bnb:${name}`, help, labelNames, registers: [this.#registry] });
  }

  #histogram(name: string, help: string, buckets: keyof typeof seconds): Histogram {
    return new Histogram({ name: `bnb:${name}`, help, buckets: seconds[buckets], registers: [this.#registry] });
  }

  #gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      name: `bnb:${name}`,
      help,
      registers: [this.#registry],
      collect() {
        this.set(value());
      },
    });
  }
}
