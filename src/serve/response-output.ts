// What a response holds: messages and calls, in the order in which they come, and the events that tell how they grow.
import { newId } from "./ids.js";
import type { Delta } from "./tools/call-parser.js";

interface Message {
  readonly type: "message";
  readonly id: string;
  status: string;
  readonly role: "assistant";
  readonly content: [{ type: "output_text"; text: string; annotations: []; logprobs: object[] }];
}
interface FunctionCall {
  readonly type: "function_call";
  readonly id: string;
  readonly call_id: string;
  readonly name: string;
  arguments: string;
  status: string;
}

export class ResponseOutput {
  readonly items: (Message | FunctionCall)[] = [];
  readonly #newCallId: () => string;

  constructor(newCallId: () => string = () => newId("call")) {
    this.#newCallId = newCallId;
  }

  /** The events of a piece. */
  *add(delta: Delta, logprobs: readonly object[]): Generator<object> {
    if (delta.type === "call") {
      yield* this.#close("completed");
      const ids = { id: newId("fc"), call_id: this.#newCallId() };
      yield* this.#open({ type: "function_call", ...ids, name: delta.name, arguments: "", status: "in_progress" });
      return;
    }
    const last = this.items.at(-1);
    if (delta.type === "arguments") {
      (last as FunctionCall).arguments += delta.text;
      yield { type: "response.function_call_arguments.delta", ...this.#at(), delta: delta.text };
      return;
    }
    if (last?.type !== "message") yield* this.#begin();
    const [part] = (this.items.at(-1) as Message).content;
    part.text += delta.text;
    part.logprobs.push(...logprobs);
    const event = { type: "response.output_text.delta", ...this.#at(), content_index: 0, delta: delta.text };
    yield { ...event, logprobs };
  }

  /** The events of the end; `isWhole`: there was nothing more to come. `logprobs`: of tokens without a text. */
  *end(isWhole: boolean, logprobs: readonly object[]): Generator<object> {
    if (this.items.length === 0) yield* this.#begin();
    const last = this.items.at(-1);
    if (last?.type === "message") last.content[0].logprobs.push(...logprobs);
    yield* this.#close(isWhole ? "completed" : "incomplete");
  }

  *#begin(): Generator<object> {
    yield* this.#close("completed");
    const part = { type: "output_text" as const, text: "", annotations: [] as [], logprobs: [] };
    const message = { type: "message" as const, id: newId("msg"), status: "in_progress", role: "assistant" as const };
    this.items.push({ ...message, content: [part] });
    yield {
      type: "response.output_item.added",
      output_index: this.items.length - 1,
      item: { ...message, content: [] },
    };
    yield { type: "response.content_part.added", ...this.#at(), content_index: 0, part: { ...part } };
  }

  *#open(item: FunctionCall): Generator<object> {
    this.items.push(item);
    yield { type: "response.output_item.added", output_index: this.items.length - 1, item: { ...item } };
  }

  *#close(status: string): Generator<object> {
    const item = this.items.at(-1);
    if (!item) return;
    item.status = status;
    if (item.type === "message") {
      const [part] = item.content;
      const at = { ...this.#at(), content_index: 0 };
      yield { type: "response.output_text.done", ...at, text: part.text, logprobs: part.logprobs };
      yield { type: "response.content_part.done", ...at, part };
    } else {
      const { name, arguments: text } = item;
      yield { type: "response.function_call_arguments.done", ...this.#at(), name, arguments: text };
    }
    yield { type: "response.output_item.done", output_index: this.items.length - 1, item };
  }

  /** Where the last item is. */
  #at(): { item_id: string; output_index: number } {
    const index = this.items.length - 1;
    return { item_id: (this.items[index] as Message).id, output_index: index };
  }
}
