// Which part of a model goes where: maps that users wrote, and those that are made of sizes. Pure: nothing is moved here.
import { Device } from "../tensor/device.js";
import { BnbError } from "../tensor/errors.js";
import { withNearest } from "../tensor/nearest.js";

/** Where a part is: the name of a device that computes it, or "cpu" or "disk", from where another device borrows it. */
export type Place = string;

/** Places by the paths of modules; a path stands for all below it, and "" for the whole model. */
export type DeviceMap = Readonly<Record<string, Device | string | number>>;

/** A part of a model that is in one place: a decoder layer, an embedding, a norm, a head. */
export interface Unit {
  readonly path: string;
  /** Of memory where it computes. */
  readonly bytes: number;
  /** The same where it is offloaded: more if it then stays unquantized. */
  readonly offloadedBytes: number;
}

/** What a map comes to. */
export interface Plan {
  readonly places: ReadonlyMap<string, Place>;
  /** The device that computes what is offloaded. */
  readonly main: Place;
}

/** What there is to fill. */
export interface Rooms {
  /** Bytes by the name of each device that computes, in the order in which they are filled. */
  readonly devices: ReadonlyMap<Place, number>;
  /** Bytes of host memory beside GPUs; 0 where the CPU computes itself. */
  readonly host: number;
}

export type Strategy = "auto" | "balanced" | "sequential";

/** Bytes as messages say them. */
export const sizeText = (bytes: number): string =>
  bytes >= 2 ** 30
    ? `${(bytes / 2 ** 30).toFixed(2)} GiB`
    : bytes >= 2 ** 20
      ? `${(bytes / 2 ** 20).toFixed(2)} MiB`
      : `${bytes} bytes`;

/** Names of devices as maps have them: 0 is "cuda:0". */
export function placeName(place: Device | string | number): Place {
  if (typeof place === "number") return `cuda:${place}`;
  if (place instanceof Device) return String(place);
  if (/^\d+$/.test(place)) return `cuda:${place}`;
  return place === "cuda" ? "cuda:0" : place;
}

const sizeRule = 'bytes or a text such as "10GiB", "10GB" or "500MB"';
const factors: Readonly<Record<string, number>> = {
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
  TIB: 2 ** 40,
};

/** Bytes of what a user wrote. */
export function parseBytes(key: string, value: unknown): number {
  const match = typeof value === "string" ? /^\s*(\d+(?:\.\d+)?)\s*([KMGTkmgt]?[iI]?B)\s*$/.exec(value) : null;
  const factor = match && factors[(match[2] as string).toUpperCase()];
  const bytes = match && factor ? Math.floor(Number(match[1]) * factor) : value;
  if (Number.isSafeInteger(bytes) && (bytes as number) >= 0) return bytes as number;
  const shown = typeof value === "string" ? JSON.stringify(value) : String(value);
  throw new BnbError("ERR_BNB_OPTION", `maxMemory: ${JSON.stringify(key)} must be ${sizeRule}, got ${shown}`);
}

/**
 * Fills devices in the order of the units, without going back, as accelerate does. "balanced" gives each the same share, "auto"
 * does so where one device is not enough. What finds no room goes to the host and then to the disk, and the first device
 * keeps room for two of these at a time. Throws ERR_BNB_OOM where not even that is there.
 */
export function planUnits(units: readonly Unit[], { devices, host }: Rooms, strategy: Strategy): Plan {
  const names = [...devices.keys()];
  const room = [...devices.values()];
  const main = Math.max(
    0,
    room.findIndex((bytes) => bytes > 0),
  );
  const total = units.reduce((sum, { bytes }) => sum + bytes, 0);
  const share = total / Math.max(1, room.filter((bytes) => bytes > 0).length) + total / units.length;
  const last = room.reduce((at, bytes, i) => (bytes > 0 ? i : at), main);
  const even = room.map((bytes, i) => (i === last ? bytes : Math.min(bytes, share)));
  const first = room.map((bytes, i) => (i === main ? bytes : 0));
  const tries = { auto: [first, even, room], balanced: [even, room], sequential: [room] }[strategy];
  const placesOf = (at: readonly number[]) =>
    new Map(units.map(({ path }, i) => [path, names[at[i] as number] as Place]));
  for (const rooms of tries) {
    const at = fill(units, rooms);
    if (at.every((device) => device >= 0)) return { places: placesOf(at), main: names[main] as Place };
  }
  // What is borrowed needs memory, which makes more of the model be borrowed.
  for (let kept = 0; ; ) {
    const left = room.map((bytes, i) => (i === main ? bytes - kept : bytes));
    if ((left[main] as number) < 0) failNoRoom(names[main] as Place, room[main] as number, kept);
    const at = fill(units, left);
    const needed = streamedBytes(units.filter((_, i) => (at[i] as number) < 0));
    if (needed <= kept) return { places: withOffloaded(units, at, placesOf(at), host), main: names[main] as Place };
    kept = needed;
  }
}

/** Which device takes each unit, by number; -1 from where none has room. */
function fill(units: readonly Unit[], rooms: readonly number[]): number[] {
  let device = 0;
  let used = 0;
  return units.map(({ bytes }) => {
    while (device < rooms.length && used + bytes > (rooms[device] as number)) {
      device++;
      used = 0;
    }
    used += bytes;
    return device < rooms.length ? device : -1;
  });
}

/** Memory for what is borrowed: a unit that computes, and the next one, which is on its way. */
export function streamedBytes(offloaded: readonly Unit[]): number {
  return offloaded.reduce((most, { offloadedBytes }, i) => {
    const next = offloaded[(i + 1) % offloaded.length] as Unit;
    return Math.max(most, offloadedBytes + (offloaded.length > 1 ? next.offloadedBytes : 0));
  }, 0);
}

function withOffloaded(
  units: readonly Unit[],
  at: readonly number[],
  places: Map<string, Place>,
  host: number,
): Map<string, Place> {
  let used = 0;
  units.forEach(({ path, offloadedBytes }, i) => {
    if ((at[i] as number) >= 0) return;
    used += offloadedBytes;
    places.set(path, used <= host ? "cpu" : "disk");
  });
  return places;
}

function failNoRoom(main: Place, room: number, needed: number): never {
  const rule = `deviceMap: ${main} must have room for two of the layers that are brought to it, ${sizeText(needed)}`;
  throw new BnbError("ERR_BNB_OOM", `${rule}, got ${sizeText(room)}: ${sizeText(needed - room)} are missing`);
}

/**
 * The places that a user's map gives to units. `paths` are those of all modules, and `tied` the path of a head without weights
 * of its own with the unit that has them. Throws ERR_BNB_OPTION for a path that is no module's, a unit that has no place or
 * several, and a tie whose ends are apart.
 */
export function resolveMap(
  map: DeviceMap,
  units: readonly Unit[],
  paths: readonly string[],
  tied: { readonly head: string; readonly unit: string } | null,
): Plan {
  const given = new Map(Object.entries(map).map(([path, place]) => [path, placeName(place)]));
  const known = tied ? [...paths, tied.head] : paths;
  for (const path of given.keys()) {
    if (path !== "" && !known.includes(path)) fail(`keys must be paths of modules, got ${withNearest(path, known)}`);
  }
  const places = new Map<string, Place>();
  for (const { path } of units) places.set(path, placeOf(path, given));
  const without = [...places].flatMap(([path, place]) => (place === "" ? [path] : []));
  if (without.length > 0) {
    const more = without.length > 5 ? ` and ${without.length - 5} more` : "";
    fail(`it must have a place for every module, got none for ${without.slice(0, 5).join(", ")}${more}`);
  }
  if (tied) {
    const [own, head] = [places.get(tied.unit) as Place, placeOf(tied.head, given) || places.get(tied.unit)];
    if (own !== head) {
      fail(`${tied.head} and ${tied.unit} share their weight and must be in one place, got ${head} and ${own}`);
    }
  }
  const main = [...places.values()].find((place) => place !== "cpu" && place !== "disk") ?? "cpu";
  return { places, main };
}

/** Of the longest key above a unit, or of all keys below it; "" if there is none. */
function placeOf(path: string, given: ReadonlyMap<string, Place>): Place {
  let above: Place | undefined;
  for (let at = path; above === undefined; at = at.slice(0, Math.max(0, at.lastIndexOf(".")))) {
    above = given.get(at);
    if (at === "") break;
  }
  const below = [...given].filter(([key]) => key.startsWith(`${path}.`)).map(([, place]) => place);
  const all = new Set(above === undefined ? below : [above, ...below]);
  if (all.size > 1) fail(`${path} must be in one place as a whole, got ${[...all].join(" and ")}`);
  return [...all][0] ?? "";
}

function fail(rule: string): never {
  throw new BnbError("ERR_BNB_OPTION", `deviceMap: ${rule}`);
}

/** Throws ERR_BNB_OOM where a map puts more on a device than it may have. */
export function checkRooms({ places, main }: Plan, units: readonly Unit[], rooms: ReadonlyMap<Place, number>): void {
  const isOffloaded = (place: Place): boolean => place === "disk" || (place === "cpu" && main !== "cpu");
  for (const [device, room] of rooms) {
    const here = units.filter(({ path }) => places.get(path) === device);
    const offloaded = units.filter(({ path }) => isOffloaded(places.get(path) as Place));
    const own = here.reduce((sum, unit) => sum + (isOffloaded(device) ? unit.offloadedBytes : unit.bytes), 0);
    const needed = own + (device === main ? streamedBytes(offloaded) : 0);
    if (needed <= room) continue;
    const rule = `deviceMap: it puts ${sizeText(needed)} on ${device}, and maxMemory allows ${sizeText(room)}`;
    throw new BnbError("ERR_BNB_OOM", `${rule}: ${sizeText(needed - room)} are missing`);
  }
}

/** The map as models tell it: one entry where all is in one place. */
export function shownMap(places: ReadonlyMap<string, Place>): Readonly<Record<string, Place>> {
  const [first, ...others] = new Set(places.values());
  return others.length === 0 && first !== undefined ? { "": first } : Object.fromEntries(places);
}
