// `bnb chat`: a conversation. Answers come as they are made; Ctrl-C ends one, and the conversation goes on.
import { createInterface } from "node:readline";
import { generate } from "../../generation/index.js";
import type { ChatMessage, GenerationConfig } from "../../hub/index.js";
import type { CausalLM } from "../../models/index.js";
import { BnbError } from "../../tensor/errors.js";
import type { CommandContext } from "../command.js";
import { command } from "../command.js";
import { generatingOptions, loadModel } from "../load-model.js";
import type { Terminal } from "../terminal.js";
import { printable } from "../terminal.js";
import { textOptions, textSettings } from "../text-options.js";

const commands = `  /help         this list
  /reset        forget the conversation
  /system TEXT  what the model is told before, from here on; without TEXT nothing
  /undo         take the last question and its answer back
  /exit         end, as Ctrl-D does
Ctrl-C ends an answer. A line that ends in \\ goes on in the next.`;

/** `bnb chat` as it is called. */
export const chat = command({
  words: ["model"],
  about: `Talks with a model that has a chat template. Reads a message a line. What is not said here is as the model's
generation_config.json says.`,
  options: {
    system: { type: "string", value: "TEXT", help: "what the model is told before" },
    ...textOptions,
    ...generatingOptions,
  },
  notes: `In the conversation:\n${commands}`,
  async run(call) {
    const { values, words, terminal } = call;
    const settings = textSettings(values);
    const model = await loadModel(words[0] as string, call);
    try {
      if (!model.tokenizer || model.tokenizer.chatTemplates.size === 0) {
        const rule = `${words[0]} has no chat template`;
        throw new BnbError("ERR_BNB_FILE", `${rule}: bnb generate continues texts without one`);
      }
      terminal.line("/help lists what can be done, /exit ends", "dim");
      const conversation = new Conversation(model, settings, values.system, call);
      await conversation.run();
      return { json: { messages: conversation.messages } };
    } finally {
      model.dispose();
    }
  },
});

class Conversation {
  readonly #model: CausalLM;
  readonly #settings: GenerationConfig;
  readonly #terminal: Terminal;
  readonly #context: CommandContext;
  #system: string | undefined;
  #turns: ChatMessage[] = [];
  #answering: AbortController | null = null;

  constructor(
    model: CausalLM,
    settings: GenerationConfig,
    system: string | undefined,
    context: CommandContext & { terminal: Terminal },
  ) {
    this.#model = model;
    this.#settings = settings;
    this.#system = system;
    this.#context = context;
    this.#terminal = context.terminal;
  }

  /** What the template gets. */
  get messages(): ChatMessage[] {
    const system = this.#system === undefined ? [] : [{ role: "system", content: this.#system }];
    return [...system, ...this.#turns];
  }

  /** Until the input ends. */
  async run(): Promise<void> {
    const { stdin: input = process.stdin, stdout, interrupts } = this.#context;
    const isTerminal = (input as { isTTY?: boolean }).isTTY === true && stdout.isTTY === true;
    const lines = createInterface({
      input,
      ...(isTerminal && { output: stdout as NodeJS.WritableStream & typeof stdout, terminal: true }),
      prompt: this.#terminal.paint("cyan", "> "),
    });
    const interrupt = (): void => {
      if (this.#answering) this.#answering.abort();
      else if (isTerminal) {
        this.#terminal.line("\n/exit or Ctrl-D ends", "dim");
        lines.prompt();
      } else lines.close();
    };
    lines.on("SIGINT", interrupt);
    interrupts?.handle(interrupt);
    try {
      if (isTerminal) lines.prompt();
      let said = "";
      for await (const line of lines) {
        said += line;
        if (said.endsWith("\\")) {
          said = `${said.slice(0, -1)}\n`;
          continue;
        }
        const message = said.trim();
        said = "";
        if (message.startsWith("/")) {
          if (!this.#command(message)) return;
        } else if (message !== "") await this.#answer(message);
        if (isTerminal) lines.prompt();
      }
      if (isTerminal) this.#terminal.line(); // behind the prompt that Ctrl-D ended
    } finally {
      interrupts?.handle(null);
      lines.close();
    }
  }

  /** False where the conversation ends. */
  #command(line: string): boolean {
    const [name, text] = [line.split(/\s/, 1)[0], line.replace(/^\S+\s*/, "")];
    const say = (what: string): void => this.#terminal.line(what, "dim");
    switch (name) {
      case "/exit":
      case "/quit":
        return false;
      case "/reset":
        this.#turns = [];
        say("The conversation is forgotten.");
        break;
      case "/system":
        this.#system = text === "" ? undefined : text;
        say(text === "" ? "The model is told nothing before." : "The model is told so from here on.");
        break;
      case "/undo":
        this.#turns = this.#turns.slice(0, -2);
        say(`${this.#turns.length / 2} questions are left.`);
        break;
      case "/help":
        say(commands);
        break;
      default:
        say(`${name} is no command.\n${commands}`);
    }
    return true;
  }

  async #answer(message: string): Promise<void> {
    const turn: ChatMessage = { role: "user", content: message };
    const stop = new AbortController();
    this.#answering = stop;
    let answer = "";
    try {
      const options = { ...this.#settings, signal: stop.signal };
      for await (const piece of generate(this.#model, [...this.messages, turn], options)) {
        answer += piece;
        this.#terminal.write(piece);
      }
      this.#terminal.line();
    } catch (error) {
      if (!(error instanceof BnbError)) throw error;
      const isStopped = stop.signal.aborted;
      this.#terminal.line(isStopped ? " (stopped)" : "", "dim");
      if (!isStopped) {
        // The question is not remembered: one that is too long would fail again each time.
        this.#context.stderr.write(`bnb chat: ${printable(error.message)}\n`);
        return;
      }
    } finally {
      this.#answering = null;
    }
    this.#turns.push(turn, { role: "assistant", content: answer });
  }
}
