// A server of a small random model, and the official client that asks it.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { expect } from "vitest";
import type { CausalLM } from "../../src/models/index.js";
import { AutoModelForCausalLM } from "../../src/models/index.js";
import type { ServeOptions } from "../../src/serve/index.js";
import { createServer } from "../../src/serve/index.js";
import { bnb } from "./bnb.js";

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
  const root = mkdtempSync(join(tmpdir(), "bnb-serve-"));
  const folder = join(root, "model");
  const sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "1", "--dtype", "float32"];
  const made = await bnb("make-model", folder, ...sizes, "--positions", "2048", "--device", "cpu");
  expect(made).toMatchObject({ code: 0 });
  change(folder);
  const model = await AutoModelForCausalLM.fromPretrained(folder, { deviceMap: "cpu" });
  const server = createServer({ model, name: "tiny", ...options }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
  while ((await fetch(url.replace("/v1", "/health"))).status !== 200) await new Promise((go) => setTimeout(go, 5));
  return {
    model,
    client: new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 }),
    url,
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      model.dispose();
      rmSync(root, { recursive: true });
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
