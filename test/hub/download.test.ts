// Models by their id: from the cache that Hugging Face's libraries share, else from a hub, here one on this machine that
// drops connections, refuses, and lies.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { ModelCache } from "../../src/hub/cache.js";
import { downloadFile } from "../../src/hub/download.js";
import type { Needs, ResolveOptions } from "../../src/hub/resolve.js";
import { resolveModel } from "../../src/hub/resolve.js";
import { AutoModelForCausalLM } from "../../src/index.js";
import { dropAfter, HubServer, status } from "../helpers/hub-server.js";
import { uniforms } from "../helpers/random.js";
import { fixturePath } from "../helpers/safetensors.js";

let hub: HubServer;
beforeAll(async () => {
  hub = await HubServer.start();
});
afterAll(() => hub.stop());

const root = mkdtempSync(join(tmpdir(), "bnb-hub-"));
afterAll(() => rmSync(root, { recursive: true }));
let home = "";
let count = 0;
const uniform = uniforms(5);
const weights = Buffer.from(Uint8Array.from({ length: 300_000 }, () => Math.floor(uniform() * 256)));

beforeEach(() => {
  home = join(root, String(count++));
  vi.stubEnv("HF_HOME", home);
  vi.stubEnv("HF_ENDPOINT", `${hub.endpoint}/`);
  vi.stubEnv("HF_HUB_CACHE", undefined);
  vi.stubEnv("HF_HUB_OFFLINE", undefined);
  vi.stubEnv("HF_TOKEN", undefined);
  hub.files.clear();
  for (const name of ["README.md", "pytorch_model.bin", "model.gguf", "onnx/model.onnx"]) {
    hub.files.set(name, Buffer.from(name));
  }
  hub.files.set("config.json", Buffer.from("{}"));
  hub.files.set("tokenizer.json", Buffer.from('{"version":"1.0"}'));
  hub.files.set("model.safetensors", weights);
  hub.faults.length = 0;
  hub.seen.length = 0;
});
afterEach(() => vi.unstubAllEnvs());

const resolve = (options: ResolveOptions = {}, needs: Needs = "model") =>
  resolveModel(hub.id, needs, { retryDelay: 1, ...options });
const readAll = (folder: string) => readFileSync(join(folder, "model.safetensors"));
const getWeights = /^GET \/cdn\/model\.safetensors/;
const describeWeights = /^HEAD .*model\.safetensors/;
const blobs = () => readdirSync(join(home, "hub", "models--org--model", "blobs"));

describe("a model that the cache lacks", () => {
  it("comes with the files that are needed and no others, into the folders of huggingface_hub", async () => {
    const folder = await resolve();
    expect(folder).toBe(join(home, "hub", "models--org--model", "snapshots", hub.commit));
    expect(readdirSync(folder).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(readAll(folder).equals(weights)).toBe(true);
    expect(readlinkSync(join(folder, "model.safetensors"))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
    expect(readlinkSync(join(folder, "config.json"))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{40}$/);
    expect(readFileSync(join(home, "hub", "models--org--model", "refs", "main"), "utf8")).toBe(hub.commit);
    expect(hub.takeSeen().some((line) => /README|pytorch|gguf|onnx/.test(line))).toBe(false);
  });

  it("is then there without a request, also offline and by its commit", async () => {
    const folder = await resolve();
    hub.takeSeen();
    expect(await resolve()).toBe(folder);
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    expect(await resolve()).toBe(folder);
    expect(await resolve({ revision: hub.commit })).toBe(folder);
    expect(hub.takeSeen()).toEqual([]);
    await expect(resolve({ revision: "v2" })).rejects.toThrow(
      "org/model: the cache at " +
        join(home, "hub") +
        " must hold it, as HF_HUB_OFFLINE is set, and files of revision v2",
    );
  });

  it("has the shards that its index names", async () => {
    hub.files.delete("model.safetensors");
    const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (const shard of [...shards, "model-00003-of-00002.safetensors"]) hub.files.set(shard, Buffer.from(shard));
    const index = JSON.stringify({ weight_map: { a: shards[0], b: shards[1] } });
    hub.files.set("model.safetensors.index.json", Buffer.from(index));
    const folder = await resolve();
    expect(readdirSync(folder).filter((name) => name.endsWith(".safetensors"))).toEqual(shards);
    // A snapshot that lacks one of them is completed.
    rmSync(join(folder, shards[1]!));
    hub.takeSeen();
    await resolve();
    expect(hub.takeSeen().filter((line) => line.startsWith("GET")).length).toBe(1);
    expect(readFileSync(join(folder, shards[1]!), "utf8")).toBe(shards[1]);
  });

  it("has what sentence-transformers says of pooling", async () => {
    const files = ["1_Pooling/config.json", "modules.json", "sentence_bert_config.json"];
    for (const name of [...files, "2_Dense/config.json"]) hub.files.set(name, Buffer.from("{}"));
    const folder = await resolve();
    for (const name of files) expect(readFileSync(join(folder, name), "utf8")).toBe("{}");
    expect(existsSync(join(folder, "2_Dense"))).toBe(false);
  });

  it("of which Python fetched the weights alone is completed, once and where the hub is there", async () => {
    for (const name of ["config.json", "generation_config.json", "modules.json", "1_Pooling/config.json"]) {
      hub.files.set(name, Buffer.from("{}"));
    }
    const folder = await resolve();
    const small = ["tokenizer.json", "generation_config.json", "modules.json", "1_Pooling/config.json"];
    const lose = (): void => {
      for (const name of small) rmSync(join(folder, name));
      rmSync(join(folder, "../../.no_exist"), { recursive: true, force: true });
    };
    lose();
    hub.takeSeen();
    // A hub that asks to wait is not waited for, and not asked again.
    hub.next(/^GET \/api/, status(429, { "retry-after": "5" }), 1);
    expect(await resolve()).toBe(folder);
    expect(hub.takeSeen()).toHaveLength(1);
    // A cache that cannot be written, for which a file stands where a folder would have to be.
    writeFileSync(join(folder, "../../.no_exist"), "");
    const tokenizer = hub.files.get("tokenizer.json")!;
    hub.files.delete("tokenizer.json");
    expect(await resolve()).toBe(folder);
    hub.files.set("tokenizer.json", tokenizer);
    rmSync(join(folder, "../../.no_exist"));
    for (const name of small.slice(1)) rmSync(join(folder, name));
    vi.stubEnv("HF_HUB_OFFLINE", "1");
    expect(await resolve()).toBe(folder);
    vi.stubEnv("HF_HUB_OFFLINE", undefined);
    expect(small.some((name) => existsSync(join(folder, name)))).toBe(false);
    hub.takeSeen();
    // The branch may have gone on: what belongs to these weights is asked for.
    expect(await resolve()).toBe(folder);
    for (const name of small) expect(readFileSync(join(folder, name))).toEqual(hub.files.get(name));
    const seen = hub.takeSeen();
    expect(seen[0]).toBe(`GET /api/models/org/model/revision/${hub.commit}`);
    expect(seen.filter((line) => /safetensors/.test(line))).toEqual([]);
    await resolve();
    expect(hub.takeSeen()).toEqual([]);
    // A model that has none of them is asked about once.
    lose();
    for (const name of small) hub.files.delete(name);
    for (const requests of [1, 0]) {
      await resolve();
      expect(hub.takeSeen()).toHaveLength(requests);
    }
    expect(readdirSync(join(folder, "../../.no_exist", hub.commit))).toEqual(["tokenizer.json"]);
    // One that has the tokenizer has all.
    writeFileSync(join(folder, "tokenizer.json"), "{}");
    rmSync(join(folder, "../../.no_exist"), { recursive: true });
    await resolve();
    expect(hub.takeSeen()).toEqual([]);
  });

  it("for its tokenizer comes without weights", async () => {
    expect(readdirSync(await resolve({}, "tokenizer"))).toEqual(["tokenizer.json"]);
  });

  it("is transferred once for two who want it at the same time", async () => {
    const [a, b] = await Promise.all([resolve(), resolve()]);
    expect(a).toBe(b);
    expect(readAll(a).equals(weights)).toBe(true);
    expect(hub.takeSeen().filter((line) => getWeights.test(line))).toHaveLength(1);
  });

  it("tells of its progress", async () => {
    const calls: [string, number, number][] = [];
    await resolve({ onDownload: (file, bytes, total) => calls.push([file, bytes, total]) });
    const ofWeights = calls.filter(([file]) => file === "model.safetensors");
    expect(ofWeights.at(-1)).toEqual(["model.safetensors", 300_000, 300_000]);
    expect(ofWeights.every(([, bytes], i) => i === 0 || bytes >= ofWeights[i - 1]![1])).toBe(true);
  });

  it("opens by its id, in the revision that is asked for", async () => {
    for (const name of ["config.json", "generation_config.json", "model.safetensors"]) {
      hub.files.set(name, readFileSync(join(fixturePath("families/llama-plain/fp32"), name)));
    }
    const model = await AutoModelForCausalLM.fromPretrained(hub.id, { revision: "refs/pr/1", token: "secret" });
    expect(model.config.vocabSize).toBe(96);
    expect(hub.takeSeen()[0]).toBe("GET /api/models/org/model/revision/refs%2Fpr%2F1");
    model.dispose();
  });
});

describe("the token", () => {
  it.each([
    ["HF_TOKEN", {}],
    ["the option", { token: "secret" }],
    ["the login", {}],
    ["the login, where HF_TOKEN is empty,", {}],
  ])("of %s goes to the hub and not to where it redirects", async (from, options) => {
    if (from === "HF_TOKEN") vi.stubEnv("HF_TOKEN", "secret");
    if (from.includes("empty")) vi.stubEnv("HF_TOKEN", "");
    if (from.startsWith("the login")) {
      mkdirSync(home, { recursive: true });
      writeFileSync(join(home, "token"), "secret\n");
    }
    await resolve(options);
    const [ours, others] = [true, false].map((own) => hub.seen.filter(({ host }) => host!.startsWith("127.") === own));
    expect(others!.length).toBe(1);
    expect(others![0]!.authorization).toBeUndefined();
    expect(new Set(ours!.map(({ authorization }) => authorization))).toEqual(new Set(["Bearer secret"]));
  });
});

describe("a transfer that breaks off", () => {
  it("goes on where it ended", async () => {
    hub.next(getWeights, dropAfter(weights, 100_000));
    hub.next(getWeights, dropAfter(weights, 50_000));
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    const ranges = hub.takeSeen().filter((line) => getWeights.test(line));
    // What the system had received when the connection broke need not have reached the program.
    expect(ranges).toEqual([
      "GET /cdn/model.safetensors",
      expect.stringMatching(/ bytes=\d+-$/),
      expect.stringMatching(/ bytes=\d{5,}-$/),
    ]);
  });

  it("goes on in the next process, too", async () => {
    const abort = new AbortController();
    hub.next(getWeights, dropAfter(weights, 100_000));
    const onDownload = (file: string, bytes: number) => {
      if (file === "model.safetensors" && bytes === 100_000) abort.abort(new Error("enough"));
    };
    const aborted = resolve({ signal: abort.signal, onDownload });
    await expect(aborted).rejects.toMatchObject({ code: "ERR_BNB_ABORTED", cause: new Error("enough") });
    expect(blobs().filter((name) => name.endsWith(".incomplete"))).toHaveLength(1);
    hub.takeSeen();
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.takeSeen().filter((line) => getWeights.test(line))).toEqual([
      "GET /cdn/model.safetensors bytes=100000-",
    ]);
    expect(blobs().filter((name) => name.endsWith(".incomplete"))).toEqual([]);
  });

  it("many times is given up when nothing comes any more", async () => {
    hub.next(getWeights, dropAfter(weights, 100_000));
    hub.next(getWeights, (request) => void request.socket.destroy(), 5);
    await expect(resolve()).rejects.toThrow(/model\.safetensors: failed 5 times, at last with: /);
  });

  it("starts again where the server ignores or refuses the range, or answers another one", async () => {
    for (const answer of [
      status(416),
      ((_, response) => void response.writeHead(200).end(weights)) as Parameters<typeof hub.next>[1],
      ((_, response) => {
        response.writeHead(206, { "content-range": "bytes 7-299999/300000" }).end(weights.subarray(7));
      }) as Parameters<typeof hub.next>[1],
    ]) {
      vi.stubEnv("HF_HOME", join(root, String(count++)));
      hub.next(getWeights, dropAfter(weights, 100_000));
      hub.next(getWeights, answer);
      expect(readAll(await resolve()).equals(weights)).toBe(true);
      expect(hub.faults).toEqual([]);
    }
  });
});

it("a file without a byte is one", async () => {
  hub.files.set("merges.txt", Buffer.of());
  expect(readFileSync(join(await resolve(), "merges.txt"))).toHaveLength(0);
});

describe("a cache that refuses", () => {
  const cannot = process.platform === "linux" ? ["/proc/none/hub"] : [];
  it.each([join(root, "file", "hub"), ...cannot])(
    "folders, such as %s, ends the download with an error",
    async (path) => {
      writeFileSync(join(root, "file"), "");
      vi.stubEnv("HF_HOME", path);
      await expect(resolve()).rejects.toMatchObject({ code: "ERR_BNB_FILE", message: expect.stringContaining(path) });
    },
  );
});

describe("a server that refuses", () => {
  const api = /^GET \/api/;
  it.each([
    [401, "needs a login, or does not exist: set HF_TOKEN or give token (HTTP 401)"],
    [
      403,
      "access is refused: the model may be gated, so accept its licence on its page, and set HF_TOKEN or give token",
    ],
    [404, "does not exist, or is private (HTTP 404)"],
    [400, "the server refuses: Bad Request (HTTP 400)"],
  ])("with %i says what to do", async (code, message) => {
    for (const match of [api, describeWeights, getWeights]) {
      hub.next(match, status(code));
      const refused = resolve();
      await expect(refused).rejects.toThrow(message);
      await expect(refused).rejects.toMatchObject({ code: "ERR_BNB_FILE" });
    }
    hub.next(api, status(401));
    await expect(resolve({ token: "wrong" })).rejects.toThrow("the token that was given is not accepted (HTTP 401)");
  });

  it.each([429, 500, 503])("with %i is asked again", async (code) => {
    for (const match of [api, describeWeights, getWeights]) hub.next(match, status(code, { "retry-after": "0" }), 2);
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.faults).toEqual([]);
  });

  it("for ever is given up", async () => {
    hub.next(getWeights, status(500), 5);
    await expect(resolve()).rejects.toThrow(/: failed 5 times, at last with: HTTP 500 Internal Server Error from http/);
    expect(hub.faults).toEqual([]);
  });

  it("is not there at all", async () => {
    const gone = await HubServer.start();
    vi.stubEnv("HF_ENDPOINT", gone.endpoint);
    await gone.stop();
    await expect(resolve()).rejects.toThrow(/failed 5 times, at last with: fetch failed \(connect ECONNREFUSED/);
  });
});

describe("a server that lies", () => {
  it("about the length of what it sends: the rest is asked for", async () => {
    hub.next(
      getWeights,
      (_, response) => void response.writeHead(200, { "content-length": 1000 }).end(weights.subarray(0, 1000)),
    );
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.takeSeen().at(-1)).toBe("GET /cdn/model.safetensors bytes=1000-");
  });

  const sized = (size: number) => (_: unknown, response: Parameters<Parameters<typeof hub.next>[1]>[1]) => {
    const hash = "0".repeat(64);
    response.writeHead(200, { "x-linked-etag": `"${hash}"`, "x-linked-size": size }).end();
  };

  it("about the size of the file, either way", async () => {
    hub.next(describeWeights, sized(299_999));
    await expect(resolve()).rejects.toThrow("failed 5 times, at last with: more than 299999 bytes came");
    hub.next(describeWeights, sized(300_001));
    await expect(resolve()).rejects.toThrow(
      /failed 5 times, at last with: the answer to a request for the bytes from 300000 on was HTTP 416/,
    );
    expect(
      blobs().some((name) => statSync(join(home, "hub", "models--org--model", "blobs", name)).size === 299_999),
    ).toBe(false);
  });

  it("about the content: what came wrong is thrown away and asked for again", async () => {
    const wrong = Buffer.from(weights);
    wrong[123_456]! ^= 1;
    hub.next(getWeights, (_, response) => void response.writeHead(200).end(wrong), 2);
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.faults).toEqual([]);
    vi.stubEnv("HF_HOME", join(root, String(count++)));
    hub.next(/^GET .*config\.json/, (_, response) => void response.writeHead(200).end("[]"), 20);
    await expect(resolve()).rejects.toThrow(
      /the bytes that came have the hash [0-9a-f]{40}, and [0-9a-f]{40} was expected/,
    );
  });

  it.each([
    "tokenizer/../../../../../../evil.json",
    "tokenizer_x/config.json",
    "1_Pooling/config.json/../../../../../../../evil.json",
  ])("about names, such as %s: what is no file of its folder is not wanted", async (name) => {
    hub.files.set(name, Buffer.from("evil"));
    expect(readdirSync(await resolve()).sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(readdirSync(home, { recursive: true }).filter((path) => String(path).includes("evil"))).toEqual([]);
  });

  it.each(["../evil.json", "a/../../evil.json", "/evil.json", "a//evil.json", "..\\evil.json", "C:evil.json", ""])(
    "about a name that would lie elsewhere: %j",
    async (name) => {
      const cache = new ModelCache(home, hub.id);
      const requests = { endpoint: hub.endpoint, token: null, retryDelay: 1 };
      const asked = downloadFile(cache, { id: hub.id, commit: hub.commit, name }, requests);
      await expect(asked).rejects.toThrow(
        `org/model: a file of a model must be named by a path inside of its folder, got ${JSON.stringify(name)}`,
      );
      expect(hub.takeSeen()).toEqual([]);
    },
  );

  it("about its files, its hashes, and where they lie", async () => {
    const json = (value: unknown) => (_: unknown, response: { end(text: string): void }) =>
      void response.end(JSON.stringify(value));
    hub.next(/^GET \/api/, json({ sha: "../../x", siblings: [] }));
    await expect(resolve()).rejects.toThrow("the server must give a commit and a list of files");
    hub.next(/^GET \/api/, json(null));
    await expect(resolve()).rejects.toThrow("the server must give a commit and a list of files");
    hub.next(
      describeWeights,
      (_, response) => void response.writeHead(200, { etag: '"../../x"', "content-length": 5 }).end(),
    );
    await expect(resolve()).rejects.toThrow('must give the hash (etag) and the size of a file, got "../../x" and 5');
    hub.next(getWeights, status(302, { location: "file:///etc/passwd" }));
    await expect(resolve()).rejects.toThrow("redirected to file:, which is no web address");
    hub.next(getWeights, status(302, { location: "/cdn/model.safetensors" }), 6);
    await expect(resolve()).rejects.toThrow("redirected more than 5 times");
    hub.faults.length = 0;
    hub.files.set("model.safetensors.index.json", Buffer.from('{"weight_map":{"a":"../../../x.safetensors"}}'));
    await expect(resolve()).rejects.toThrow("must lie in a file of the same folder that ends in .safetensors");
  });
});

describe("a name that is none", () => {
  it.each([
    ["../model", "ERR_BNB_FILE", "../model: is no folder"],
    ["/nowhere/model", "ERR_BNB_FILE", "/nowhere/model: is no folder"],
    ["model.gguf", "ERR_BNB_FILE", "model.gguf: is no folder: GGUF files are llama.cpp's own"],
    ["package.json", "ERR_BNB_FILE", "package.json: is a file, not the folder of a model"],
    ["a/b/c", "ERR_BNB_ARGUMENT", '"a/b/c" must be a folder, or an id of the hub such as'],
    ["a/..", "ERR_BNB_ARGUMENT", '"a/.." must be a folder, or an id'],
    ["", "ERR_BNB_ARGUMENT", '"" must be a folder, or an id'],
    ["a b", "ERR_BNB_ARGUMENT", '"a b" must be a folder, or an id'],
  ])("%j", async (name, code, message) => {
    const refused = resolveModel(name, "model");
    await expect(refused).rejects.toThrow(message);
    await expect(refused).rejects.toMatchObject({ code });
  });

  it("or a revision that is none", async () => {
    await expect(resolve({ revision: "../main" })).rejects.toThrow(
      'fromPretrained: revision must be a branch, tag or commit, got "../main"',
    );
  });

  it("has no weights that can be read", async () => {
    for (const name of ["model.safetensors", "pytorch_model.bin"]) hub.files.delete(name);
    await expect(resolve()).rejects.toThrow(
      "org/model: must hold model.safetensors or model.safetensors.index.json, has neither; its GGUF files are",
    );
  });
});
