// Adapters of a server: each is a model of its own to clients, computed beside the others, and comes and goes while it runs.
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { embed, generate } from "../../src/generation/index.js";
import type { CausalLM } from "../../src/models/index.js";
import { Generator } from "../../src/ops/index.js";
import { AdapterSet, getPeftModel, LoraConfig } from "../../src/peft/index.js";
import { createServeHandler } from "../../src/serve/index.js";
import { bnb } from "../helpers/bnb.js";
import type { Running, TinyModel } from "../helpers/served.js";
import { serve, tinyModel } from "../helpers/served.js";

let tiny: TinyModel;
let model: CausalLM;
const folder = (name: string) => join(tiny.folder, "..", name);
const names = ["style", "facts"];
/** What PeftModel says with each adapter, and the base without. */
const alone = new Map<string, string>();
/** And its vectors of two texts. */
const vectors = new Map<string, Float32Array>();
const prompt = "A bit of text that takes more than one page of keys";
const asked = { prompt, max_tokens: 12, temperature: 0 } as const;

async function embedded(): Promise<Float32Array> {
  using made = await embed(model, ["a bit", "bytes"], { normalize: true });
  return made.floats();
}

async function said(): Promise<string> {
  let text = "";
  for await (const piece of generate(model, prompt, { maxNewTokens: 12, doSample: false })) text += piece;
  return text;
}

beforeAll(async () => {
  tiny = await tinyModel();
  ({ model } = tiny);
  alone.set("tiny", await said());
  vectors.set("tiny", await embedded());
  for (const [i, name] of names.entries()) {
    const config = { r: 4 + i, loraAlpha: 64, targetModules: "all-linear", initLoraWeights: false } as const;
    const peft = getPeftModel(model, new LoraConfig(config), { generator: new Generator(i) });
    await peft.savePretrained(folder(name));
    peft.setAdapter("default", { inferenceMode: true });
    alone.set(name, await said());
    vectors.set(name, await embedded());
    peft.unload();
  }
});
afterAll(() => tiny[Symbol.dispose]());

const ask = async ({ client }: Running, name: string): Promise<string> => {
  const { model: told, choices } = await client.completions.create({ ...asked, model: name });
  expect(told).toBe(name);
  return choices[0]!.text;
};
const post = async ({ url }: Running, path: string, body: object, key: string): Promise<[number, unknown]> => {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const response = await fetch(`${url}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  return [response.status, await response.json()];
};
const [loads, unloads] = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"];

describe("adapters given to the server", () => {
  it("are models in the list, and each says what it says alone, all at once", async () => {
    using adapters = new AdapterSet(model);
    for (const name of names) await adapters.load(name, folder(name));
    await using own = await serve(model, { adapters });
    expect(new Set(alone.values()).size).toBe(3);
    const { data } = await own.client.models.list();
    expect(data.map(({ id, ...rest }) => [id, (rest as Record<string, unknown>)["parent"]])).toEqual([
      ["tiny", null],
      ["style", "tiny"],
      ["facts", "tiny"],
    ]);
    expect(await own.client.models.retrieve("facts")).toMatchObject({ id: "facts", root: "tiny", parent: "tiny" });
    const all = ["facts", "tiny", "style", "tiny", "facts", "style"];
    expect(await Promise.all(all.map((name) => ask(own, name)))).toEqual(all.map((name) => alone.get(name)));
    const chat = await own.client.chat.completions.create({
      model: "style",
      messages: [{ role: "user", content: "Hi" }],
      max_tokens: 3,
    });
    expect(chat.model).toBe("style");
    const missing = own.client.completions.create({ ...asked, model: "stile" });
    await expect(missing).rejects.toThrow('404 the model "stile" does not exist; there is tiny, style, facts');
    const got = await Promise.all(
      ["facts", "tiny", "style"].map(async (name) => {
        const answer = await own.client.embeddings.create({ model: name, input: ["a bit", "bytes"] });
        expect([answer.model, answer.data.length]).toEqual([name, 2]);
        for (const [i, { embedding }] of answer.data.entries()) {
          const right = vectors.get(name)!.slice(i * embedding.length, (i + 1) * embedding.length);
          expect(Math.max(...embedding.map((value, at) => Math.abs(value - right[at]!)))).toBeLessThan(1e-5);
        }
        return answer.data[0]!.embedding;
      }),
    );
    const [facts, base, style] = got.map(
      (vector) => (other: number[]) => Math.hypot(...vector.map((v, i) => v - other[i]!)),
    );
    expect(Math.min(facts!(got[1]!), base!(got[2]!), style!(got[0]!))).toBeGreaterThan(0.01);
    expect(own.lines.map((line) => line.model)).toContain("facts");
  });

  it("may not have the name of the base", async () => {
    using adapters = new AdapterSet(model);
    await adapters.load("style", folder("style"));
    expect(() => createServeHandler({ model, name: "style", adapters })).toThrow(
      "createServeHandler: name must be that of no adapter, got style",
    );
  });
});

describe("an admin", () => {
  it("loads and unloads adapters while the server runs", async () => {
    await using own = await serve(model, { adminKeys: ["root"], deterministic: true });
    const body = { lora_name: "facts", lora_path: folder("facts") };
    expect(await post(own, loads, body, "root")).toEqual([
      200,
      { id: "facts", object: "model", root: "tiny", parent: "tiny" },
    ]);
    expect(await ask(own, "facts")).toBe(alone.get("facts"));
    expect(await ask(own, "tiny")).toBe(alone.get("tiny"));
    const [status, error] = await post(own, loads, body, "root");
    expect([status, error]).toMatchObject([400, { error: { param: "lora_name", message: /a new name, got facts/ } }]);
    expect(await post(own, unloads, { lora_name: "facts" }, "root")).toMatchObject([200, { deleted: true }]);
    await expect(ask(own, "facts")).rejects.toThrow("404");
    expect((await post(own, unloads, { lora_name: "facts" }, "root"))[0]).toBe(404);
    const missing = await post(own, loads, { ...body, lora_path: folder("nothing") }, "root");
    expect(missing).toMatchObject([400, { error: { param: "lora_path" } }]);
    const more = await post(own, loads, { ...body, load_inplace: true }, "root");
    expect(more).toMatchObject([400, { error: { param: "load_inplace" } }]);
    expect((await post(own, loads, { lora_path: "x" }, "root"))[0]).toBe(400);
    // The own adapters of a handler end with it.
    expect((await post(own, loads, body, "root"))[0]).toBe(200);
  });

  it("has a key that no other key is", async () => {
    const body = { lora_name: "facts", lora_path: folder("facts") };
    await using own = await serve(model, { adminKeys: ["root"], apiKeys: ["user"] }, "root");
    for (const path of [loads, unloads]) {
      expect(await post(own, path, body, "user")).toMatchObject([401, { error: { code: "invalid_api_key" } }]);
    }
    // Nor may an admin ask for texts.
    await expect(own.client.completions.create({ ...asked, model: "tiny" })).rejects.toThrow("401");
    await using open = await serve(model);
    expect(await post(open, loads, body, "")).toMatchObject([403, { error: { code: "no_admin_key" } }]);
  });
});

describe("bnb serve --lora", () => {
  it("says how an adapter is given, and what is wrong with its folder", async () => {
    const serveWith = (...args: string[]) => bnb("serve", tiny.folder, "--port", "0", "--device", "cpu", ...args);
    expect(await serveWith("--lora", "style")).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--lora must be NAME=FOLDER, got style") as string,
    });
    const missing = await serveWith("--lora", `style=${folder("style")}`, "--lora", `x=${folder("nothing")}`);
    expect(missing.code).not.toBe(0);
    expect(missing.stderr).toContain("its adapter_config.json could not be read");
  });
});
