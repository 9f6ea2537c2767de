// The first steps of a server, before it says that it is ready: what is allocated, tuned and recorded at first use is there
// when the first request comes.
import { settingsOf } from "../generation/settings.js";
import { BnbError } from "../tensor/errors.js";
import type { Served } from "./served.js";

/** Tokens of each text: the second step of a size is recorded, the third replayed. */
const tokens = 3;
const mostTogether = 64;

export async function warmUp({ engine, model, tokenizer }: Served): Promise<void> {
  const text = await tokenizer.encode("Hello");
  const prompt = text.length > 0 ? text : Int32Array.of(0);
  if (prompt.length + tokens > engine.maxLength) return;
  const settings = settingsOf("generate", model, { maxNewTokens: tokens, doSample: false, eosTokenId: [] });
  const one = async (): Promise<void> => {
    for await (const _ of engine.run("generate", prompt, settings, { wantsText: true, salt: "warm-up" }));
  };
  try {
    // Steps are recorded by their number of texts, on a GPU.
    const most = model.device.type === "cuda" ? mostTogether : 1;
    for (let together = 1; together <= most; together *= 2) await Promise.all(Array.from({ length: together }, one));
  } catch (error) {
    // It was disposed meanwhile.
    if (error instanceof BnbError && error.code === "ERR_BNB_DISPOSED") return;
    throw error;
  }
}
