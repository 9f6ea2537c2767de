// The cache that Hugging Face's libraries share: where it is, and what of a model it holds. A file's content is a blob
// named by its hash; a snapshot, a folder named by a commit, links to blobs; refs say which commit a branch is at.
import { readFile, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { BnbError } from "../tensor/errors.js";

/** What the environment says about the hub. */
export interface HubSettings {
  readonly endpoint: string;
  /** The folder of all models. */
  readonly cache: string;
  readonly token: string | null;
  readonly offline: boolean;
}

/** HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HF_TOKEN and HF_HUB_OFFLINE as huggingface_hub reads them; an empty one counts as none. */
export async function hubSettings(env: NodeJS.ProcessEnv = process.env): Promise<HubSettings> {
  const home = env["HF_HOME"] || join(env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "huggingface");
  const login = (): Promise<string> => readFile(join(home, "token"), "utf8").catch(() => "");
  const token = env["HF_TOKEN"]?.trim() || (await login()).trim();
  return {
    endpoint: (env["HF_ENDPOINT"] || "https://huggingface.co").replace(/\/+$/, ""),
    cache: env["HF_HUB_CACHE"] || join(home, "hub"),
    token: token === "" ? null : token,
    offline: /^(1|on|yes|true)$/i.test(env["HF_HUB_OFFLINE"] ?? ""),
  };
}

const COMMIT = /^[0-9a-f]{40}$/;

/** Whether a revision is a commit, whose files never change. */
export const isCommit = (revision: string): boolean => COMMIT.test(revision);

/** Throws ERR_BNB_ARGUMENT for what is no id, such as "meta-llama/Llama-3.2-1B". */
export function checkRepoId(id: string): void {
  const parts = id.split("/");
  const isName = (part: string): boolean => /^\w[\w.-]{0,95}$/.test(part) && !/\.\.|--|[.-]$/.test(part);
  if (parts.length <= 2 && parts.every(isName)) return;
  const rule = `"${id.slice(0, 200)}" must be a folder, or an id of the hub such as "meta-llama/Llama-3.2-1B"`;
  throw new BnbError("ERR_BNB_ARGUMENT", `fromPretrained: ${rule}`);
}

/** Throws ERR_BNB_ARGUMENT for what is no branch, tag or commit. */
export function checkRevision(revision: string): void {
  if (/^\w[\w.-]*(\/\w[\w.-]*)*$/.test(revision) && !revision.includes("..")) return;
  throw new BnbError(
    "ERR_BNB_ARGUMENT",
    `fromPretrained: revision must be a branch, tag or commit, got "${revision.slice(0, 200)}"`,
  );
}

/** The folder of one model in the cache. */
export class ModelCache {
  readonly folder: string;

  constructor(cache: string, id: string) {
    this.folder = join(cache, `models--${id.replace("/", "--")}`);
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  blob(hash: string): string {
    return join(this.folder, "blobs", hash);
  }

  /** What stands for a file that a commit has not, as huggingface_hub notes it. */
  absent(commit: string, name: string): string {
    return join(this.folder, ".no_exist", commit, name);
  }

  ref(revision: string): string {
    return join(this.folder, "refs", ...revision.split("/"));
  }

  /** The commit of a revision as far as the cache knows. */
  async commitOf(revision: string): Promise<string | undefined> {
    if (isCommit(revision)) return revision;
    const commit = (await readFile(this.ref(revision), "utf8").catch(() => "")).trim();
    return isCommit(commit) ? commit : undefined;
  }
}

/** Whether a path exists, after following links. */
export const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );
