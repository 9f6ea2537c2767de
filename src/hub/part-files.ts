// What has come so far of a blob: a file beside it, written by one process alone. Its name says by which, so that others wait
// while that one lives, and go on with it when it has died or given it up.
import { createHash, randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { copyFile, open, readdir, rename, rm, stat, utimes } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join } from "node:path";
import { threadId } from "node:worker_threads";

/** Of an owner of another machine nothing is known but when he last wrote. Each attempt ends when nothing comes for a minute. */
const STALE = 120_000;
/** Containers may share the name of a machine and not its processes: one that writes is not dead. */
const SILENT = 5000;
const END = ".incomplete";
const NOBODY = 0;

/** This machine, in names of files. */
const host = (): string => createHash("sha256").update(hostname()).digest("hex").slice(0, 8);
const nameOf = (blob: string, pid: number): string =>
  `${blob}.${host()}-${pid}-${threadId}-${randomBytes(6).toString("hex")}${END}`;
/** Those that this thread is writing. */
const mine = new Set<string>();

interface Part {
  readonly path: string;
  readonly size: number;
  /** alive: somebody writes it; free: nobody can any more; stale: nobody does, though its owner may be there. */
  readonly state: "alive" | "free" | "stale";
}

/** A part of one's own with as much as others have left; null while another one is being written. */
export async function takePart(blob: string): Promise<string | null> {
  const parts = await partsOf(blob);
  if (parts.some(({ state }) => state === "alive")) return null;
  const own = nameOf(blob, process.pid);
  mine.add(own);
  for (const { path, state } of parts.sort((a, b) => b.size - a.size)) {
    // The owner of a stale one may wake up and write on: not into what is checked here.
    const take = state === "free" ? rename(path, own) : copyFile(path, own, constants.COPYFILE_FICLONE);
    const isTaken = await take.then(
      () => true,
      () => false,
    );
    if (!isTaken) continue; // another process was faster
    const now = new Date();
    await utimes(own, now, now);
    return own;
  }
  await (await open(own, "wx")).close();
  return own;
}

/** Leaves a part to whoever goes on with it. */
export async function leavePart(blob: string, part: string): Promise<void> {
  mine.delete(part);
  const found = await stat(part).catch(() => undefined);
  if (found && found.size > 0) await rename(part, nameOf(blob, NOBODY));
  else await rm(part, { force: true });
}

/** The blob is whole: `own` is of no use any more, and what others had of it. */
export async function removeParts(blob: string, own: string): Promise<void> {
  mine.delete(own);
  for (const { path, state } of await partsOf(blob)) if (state !== "alive") await rm(path, { force: true });
}

async function partsOf(blob: string): Promise<Part[]> {
  const start = `${basename(blob)}.`;
  const names = (await readdir(dirname(blob))).filter((name) => name.startsWith(start) && name.endsWith(END));
  const parts = names.map(async (name): Promise<Part[]> => {
    const path = join(dirname(blob), name);
    const found = await stat(path).catch(() => undefined);
    if (!found) return [];
    const [, owner, pid, thread] = /^([0-9a-f]{8})-(\d+)-(\d+)-/.exec(name.slice(start.length, -END.length)) ?? [];
    const age = Date.now() - found.mtimeMs;
    // A process has the number of one before it where it begins anew, as the first one of a container.
    const isOld = Number(pid) === process.pid && Number(thread) === threadId && !mine.has(path);
    const isDead = !isRunning(Number(pid)) && age > SILENT;
    const isFree = owner !== undefined && (Number(pid) === NOBODY || (owner === host() && (isOld || isDead)));
    const state = isFree ? "free" : age > STALE ? "stale" : "alive";
    return [{ path, size: found.size, state }];
  });
  return (await Promise.all(parts)).flat();
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
