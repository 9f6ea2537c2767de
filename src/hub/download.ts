// One file from the hub into the cache: resumed where it broke off, checked against the hash that the hub knows, and named
// only then.
import type { Hash } from "node:crypto";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { copyFile, open, rename, stat, symlink, truncate } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { BnbError } from "../tensor/errors.js";
import type { ModelCache } from "./cache.js";
import { exists } from "./cache.js";
import type { HubRequests } from "./http.js";
import { bodyOf, request, throwIfAborted, WrongContent, withRetries } from "./http.js";
import { makeFolders } from "./make-folders.js";
import { leavePart, removeParts, takePart } from "./part-files.js";

export interface RemoteFile {
  readonly id: string;
  readonly commit: string;
  readonly name: string;
}

/** Called with the bytes of the file that are there, of how many. */
export type OnBytes = (bytes: number, total: number) => void;

/** Brings a file into the snapshot of its commit; nothing is transferred that is there. Throws ERR_BNB_FILE. */
export async function downloadFile(
  cache: ModelCache,
  file: RemoteFile,
  requests: HubRequests,
  onBytes: OnBytes = () => undefined,
): Promise<string> {
  checkName(file);
  const target = join(cache.snapshot(file.commit), file.name);
  if (await exists(target)) return target;
  const url = `${requests.endpoint}/${file.id}/resolve/${file.commit}/${file.name}`;
  const { hash, size } = await withRetries(url, requests, () => describe(url, requests));
  const blob = cache.blob(hash);
  // Two loads of a model in one process share the transfer; if the other one fails, this one tries itself.
  for (let other = running.get(blob); other; other = running.get(blob)) await other.catch(() => undefined);
  const transferred = complete(url, blob, { hash, size }, requests, onBytes);
  running.set(blob, transferred);
  await transferred.finally(() => running.delete(blob));
  onBytes(size, size);
  await link(blob, target);
  return target;
}

/** Throws ERR_BNB_FILE for a name that would be none in the folder of the snapshot. */
function checkName({ id, name }: RemoteFile): void {
  const isPart = (part: string): boolean => !/^\.{0,2}$|[\\:\0]/.test(part);
  if (name.split("/").every(isPart)) return;
  const rule = "a file of a model must be named by a path inside of its folder";
  throw new BnbError("ERR_BNB_FILE", `${id}: ${rule}, got ${JSON.stringify(name.slice(0, 200))}`);
}

const running = new Map<string, Promise<void>>();

/** Transfers a blob that is not there, in as many attempts as it takes, and names it when it is whole. */
async function complete(
  url: string,
  blob: string,
  content: Content,
  requests: HubRequests,
  onBytes: OnBytes,
): Promise<void> {
  if (await exists(blob)) return;
  await makeFolders(dirname(blob));
  let own = await takePart(blob);
  while (own === null) {
    throwIfAborted(requests.signal);
    await wait(500);
    own = await takePart(blob);
  }
  const part = own;
  try {
    // Another process may have had the last part until now.
    if (await exists(blob)) return await removeParts(blob, part);
    await withRetries(url, requests, (progress) =>
      transfer(url, part, content, requests, (bytes) => {
        progress();
        onBytes(bytes, content.size);
      }),
    );
    await rename(part, blob);
  } catch (error) {
    await leavePart(blob, part);
    throw error;
  }
  await removeParts(blob, part);
}

interface Content {
  readonly hash: string;
  readonly size: number;
}

/** Hash and size of a file, which the hub knows without sending it. */
async function describe(url: string, requests: HubRequests): Promise<Content> {
  const response = await request(url, requests, { method: "HEAD", follow: false });
  const header = (name: string): string | null => response.headers.get(name);
  const hash = (header("x-linked-etag") ?? header("etag") ?? "").replace(/^W\/|"/g, "");
  const size = Number(header("x-linked-size") ?? header("content-length") ?? Number.NaN);
  if (!/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(hash) || !Number.isSafeInteger(size) || size < 0) {
    const rule = "the server must give the hash (etag) and the size of a file";
    throw new BnbError("ERR_BNB_FILE", `${url}: ${rule}, got ${JSON.stringify(hash)} and ${size}`);
  }
  return { hash, size };
}

/** Completes `part`. A failure that may pass leaves what came for the next attempt. */
async function transfer(
  url: string,
  part: string,
  content: Content,
  requests: HubRequests,
  onBytes: (bytes: number) => void,
): Promise<void> {
  const { hash, size } = content;
  if ((await stat(part)).size > size) await truncate(part);
  const digest = hashFor(content);
  let have = 0;
  for await (const piece of createReadStream(part)) {
    digest.update(piece as Buffer);
    have += (piece as Buffer).length;
  }
  if (have < size) {
    const range: Record<string, string> = have > 0 ? { range: `bytes=${have}-` } : {};
    const response = await request(url, requests, { headers: range, accepted: [416] });
    if (!continues(response, have)) {
      // The server sends all of it, or knows no such range: the next attempt is from the beginning.
      await response.body?.cancel();
      await truncate(part);
      throw new WrongContent(`the answer to a request for the bytes from ${have} on was HTTP ${response.status}`);
    }
    have = await append(part, response, have, size, digest, onBytes);
  }
  if (have < size) throw new Error(`the connection ended at byte ${have} of ${size}`);
  const found = digest.digest("hex");
  const written = (await stat(part)).size;
  if (have === size && written === size && found === hash) return;
  await truncate(part);
  if (have > size) throw new WrongContent(`more than ${size} bytes came, which the file has`);
  if (found !== hash) throw new WrongContent(`the bytes that came have the hash ${found}, and ${hash} was expected`);
  throw new WrongContent(`${part} has ${written} bytes, though ${size} were written`);
}

/** Whether the body of a response begins at byte `have`. */
function continues(response: Response, have: number): boolean {
  if (have === 0) return response.status === 200;
  const begin = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1];
  return response.status === 206 && Number(begin) === have;
}

async function append(
  part: string,
  response: Response,
  have: number,
  size: number,
  digest: Hash,
  onBytes: (bytes: number) => void,
): Promise<number> {
  const file = await open(part, "a");
  let at = have;
  try {
    for await (const piece of bodyOf(response)) {
      at += piece.byteLength;
      if (at > size) break;
      await file.appendFile(piece);
      digest.update(piece);
      onBytes(at);
    }
    await file.sync();
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== "ENOSPC" && code !== "EDQUOT" && code !== "EFBIG") throw cause;
    throw new BnbError("ERR_BNB_FILE", `${part}: could not be written: ${(cause as Error).message}`, { cause });
  } finally {
    await file.close();
  }
  return at;
}

/** Large files are known by their SHA-256, others by git's SHA-1 of a blob. */
function hashFor({ hash, size }: Content): Hash {
  return hash.length === 64 ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

/** Names a blob in a snapshot; by a copy where there are no links. */
async function link(blob: string, target: string): Promise<void> {
  await makeFolders(dirname(target));
  try {
    await symlink(relative(dirname(target), blob), target);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "EEXIST") return;
    if (code !== "EPERM" && code !== "ENOSYS" && code !== "EOPNOTSUPP") throw cause;
    await copyFile(blob, target);
  }
}
