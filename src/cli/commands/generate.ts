// `bnb generate`: what a model writes after a prompt, as it comes.
import { isUtf8 } from "node:buffer";
import { generate as continueText } from "../../generation/index.js";
import { command, usageError } from "../command.js";
import { generatingOptions, loadModel, tokenizerOf } from "../load-model.js";
import { textOptions, textSettings } from "../text-options.js";

/** `bnb generate` as it is called. */
export const generate = command({
  words: ["model"],
  about: `Prints what the model writes after a prompt, as it comes. With --chat the prompt is a message, and the answer
to it is printed. What is not said here is as the model's generation_config.json says.`,
  options: {
    prompt: { type: "string", value: "TEXT", help: "the prompt (default: what is piped in)" },
    chat: { type: "boolean", help: "put the prompt into the model's chat template" },
    system: { type: "string", value: "TEXT", help: "with --chat: what the model is told before" },
    ...textOptions,
    ...generatingOptions,
  },
  async run(call) {
    const { values, words, terminal, signal, stdin } = call;
    const settings = textSettings(values);
    if (values.system !== undefined && !values.chat) throw usageError("--system needs --chat");
    const text = values.prompt ?? (await readAll(stdin));
    if (text === "") throw usageError("--prompt TEXT is missing: what the model is to continue");
    const system = values.system === undefined ? [] : [{ role: "system", content: values.system }];
    const prompt = values.chat ? [...system, { role: "user", content: text }] : text;
    const model = await loadModel(words[0] as string, call);
    let answer = "";
    try {
      tokenizerOf(model);
      let first = 0;
      const began = performance.now();
      for await (const piece of continueText(model, prompt, { ...settings, signal })) {
        if (answer === "") first = performance.now();
        answer += piece;
        terminal.write(piece);
      }
      const milliseconds = { first: Math.round(first - began), all: Math.round(performance.now() - began) };
      terminal.line();
      return { json: { prompt, text: answer, milliseconds } };
    } catch (error) {
      if (answer !== "") terminal.line();
      throw error;
    } finally {
      model.dispose();
    }
  },
});

/** Everything that is piped in; nothing where a person would have to type it. */
async function readAll(stdin: (NodeJS.ReadableStream & { isTTY?: boolean }) | undefined): Promise<string> {
  if (!stdin || stdin.isTTY) return "";
  const pieces: Buffer[] = [];
  for await (const piece of stdin) pieces.push(Buffer.from(piece as Uint8Array | string));
  const all = Buffer.concat(pieces);
  if (!isUtf8(all)) throw usageError("what is piped in must be UTF-8, and is not");
  return all.toString("utf8").replace(/\n$/, "");
}
