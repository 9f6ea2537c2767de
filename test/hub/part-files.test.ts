// Files of the hub that several processes want: one transfers what others wait for, goes on with what is left of it, and takes
// nothing for whole that another one writes into.
import { spawn } from "node:child_process";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import type { Needs, ResolveOptions } from "../../src/hub/resolve.js";
import { resolveModel } from "../../src/hub/resolve.js";
import { dropAfter, HubServer } from "../helpers/hub-server.js";
import { uniforms } from "../helpers/random.js";

let hub: HubServer;
let home = "";
const uniform = uniforms(5);
const weights = Buffer.from(Uint8Array.from({ length: 300_000 }, () => Math.floor(uniform() * 256)));
beforeAll(async () => {
  hub = await HubServer.start();
  hub.files.set("config.json", Buffer.from("{}"));
  hub.files.set("model.safetensors", weights);
});
afterAll(() => hub.stop());
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "bnb-parts-"));
  vi.stubEnv("HF_HOME", home);
  vi.stubEnv("HF_ENDPOINT", hub.endpoint);
  for (const name of ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"]) vi.stubEnv(name, undefined);
  hub.faults.length = 0;
  hub.seen.length = 0;
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(home, { recursive: true });
});

const resolve = (options: ResolveOptions = {}, needs: Needs = "model") =>
  resolveModel(hub.id, needs, { retryDelay: 1, ...options });
const readAll = (folder: string) => readFileSync(join(folder, "model.safetensors"));
const getWeights = /^GET \/cdn\/model\.safetensors/;

describe("a file that two processes want", () => {
  const folder = () => join(home, "hub", "models--org--model", "blobs");
  const parts = () => readdirSync(folder()).filter((name) => name.endsWith(".incomplete"));
  const part = () => join(folder(), parts()[0]!);
  /** Leaves the first 100,000 bytes, in a file whose name is changed. */
  const leave = async (rename: (name: string) => string): Promise<void> => {
    const abort = new AbortController();
    hub.next(getWeights, dropAfter(weights, 100_000));
    const onDownload = (_: string, bytes: number) => void (bytes === 100_000 && abort.abort());
    await expect(resolve({ signal: abort.signal, onDownload })).rejects.toMatchObject({ code: "ERR_BNB_ABORTED" });
    const [name] = parts();
    renameSync(join(folder(), name!), join(folder(), rename(name!)));
    hub.takeSeen();
  };
  const ofPid = (pid: number) => (name: string) => name.replace(/-0-/, `-${pid}-`);
  const silent = new Date(Date.now() - 10_000);
  const old = new Date(Date.now() - 150_000);
  const until = async (holds: () => boolean): Promise<void> => {
    while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
  };

  it("is waited for while another one writes it, and not fetched", async () => {
    await leave(ofPid(process.ppid));
    let isOver = false;
    const waits = resolve().finally(() => {
      isOver = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect([isOver, parts().length]).toEqual([false, 1]);
    // The other one has all of it.
    writeFileSync(part().replace(/\.[^.]*\.incomplete$/, ""), weights);
    rmSync(part());
    expect(readAll(await waits).equals(weights)).toBe(true);
    expect(hub.takeSeen().filter((line) => getWeights.test(line))).toEqual([]);
    expect(parts()).toEqual([]);
  });

  it.each(["another one", "one with the number of this process"])(
    "is completed where the other has died: %s",
    async (which) => {
      const dead = spawn(process.execPath, ["--version"]);
      await new Promise((resolve) => dead.once("close", resolve));
      await leave(ofPid(which === "another one" ? dead.pid! : process.pid));
      if (which === "another one") utimesSync(part(), silent, silent);
      expect(readAll(await resolve()).equals(weights)).toBe(true);
      expect(hub.takeSeen().filter((line) => getWeights.test(line))).toEqual([
        "GET /cdn/model.safetensors bytes=100000-",
      ]);
      expect(parts()).toEqual([]);
    },
  );

  it.each([
    ["one of this package", ofPid(process.ppid)],
    ["Python's", (name: string) => name.replace(/\..*\./, ".")],
  ])("is completed beside what a process that no longer writes has of it: %s", async (_, rename) => {
    await leave(rename);
    utimesSync(part(), old, old);
    // It wakes up later, and writes on.
    const asleep = openSync(part(), "a");
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    writeSync(asleep, "more");
    closeSync(asleep);
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.takeSeen().filter((line) => getWeights.test(line))).toEqual([
      "GET /cdn/model.safetensors bytes=100000-",
    ]);
    expect(parts()).toEqual([]);
  });

  it("is not taken for whole when something else writes into it", async () => {
    hub.next(getWeights, (_, response) => {
      response.writeHead(200, { "content-length": weights.length }).write(weights.subarray(0, 100_000));
      void until(() => statSync(part()).size > 0).then(() => {
        writeFileSync(part(), "more", { flag: "a" });
        response.end(weights.subarray(100_000));
      });
    });
    expect(readAll(await resolve()).equals(weights)).toBe(true);
    expect(hub.takeSeen().filter((line) => getWeights.test(line))).toHaveLength(2);
  });
});
