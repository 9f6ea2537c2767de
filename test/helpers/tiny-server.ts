// A server of a small random model, and the official client that asks it.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type OpenAI from "openai";
import type { CausalLM } from "../../src/models/index.js";
import type { ServeOptions } from "../../src/serve/index.js";
import { serve, tinyModel } from "./served.js";

export interface TinyServer {
  readonly model: CausalLM;
  readonly client: OpenAI;
  /** Where its API is. */
  readonly url: string;
  close(): Promise<void>;
}

/** Each byte is a token: makes what ends a part of a JSON text likelier, and halves of characters all but impossible. */
export const biasOfBytes: Record<string, number> = {
  ...Object.fromEntries(Array.from({ length: 64 }, (_, i) => [0xc0 + i, -100])),
  ...{ [`"`.charCodeAt(0)]: 6, ["}".charCodeAt(0)]: 4, ["]".charCodeAt(0)]: 4 },
};

/** `change` may change the files of the model before it is loaded. */
export async function tinyServer(
  options: Partial<ServeOptions> = {},
  change: (folder: string) => void = () => {},
): Promise<TinyServer> {
  const tiny = await tinyModel(2048, change);
  const running = await serve(tiny.model, options);
  await running.handler.ready;
  return {
    model: tiny.model,
    client: running.client,
    url: `${running.url}/v1`,
    async close() {
      await running[Symbol.asyncDispose]();
      tiny[Symbol.dispose]();
    },
  };
}

/** Its template shows tools and calls of them, and token 257 is `marker`. */
export function withMarker(marker: string, isSpecial: boolean, call = marker): (folder: string) => void {
  return (folder) => {
    const path = join(folder, "tokenizer.json");
    const tokenizer = JSON.parse(readFileSync(path, "utf8")) as { added_tokens: { id: number }[] };
    const added = tokenizer.added_tokens.map((token) =>
      token.id === 257 ? { ...token, content: marker, special: isSpecial } : token,
    );
    writeFileSync(path, JSON.stringify({ ...tokenizer, added_tokens: added }));
    const configPath = join(folder, "tokenizer_config.json");
    const config = JSON.parse(readFileSync(configPath, "utf8")) as Record<string, unknown>;
    delete config["added_tokens_decoder"];
    const template =
      "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for message in messages %}{{ message.role }}: " +
      "{{ message.content }}{% for call in message.tool_calls or [] %}" +
      `${call}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}` +
      "{% if add_generation_prompt %}assistant: {% endif %}";
    writeFileSync(configPath, JSON.stringify({ ...config, chat_template: template }));
  };
}
