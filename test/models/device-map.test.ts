// Who goes where: the planner of device maps on tables of sizes, and maps that users write.
import { describe, expect, it } from "vitest";
import { empty, emptyCache, memory } from "../../src/index.js";
import type { DeviceMap, Strategy, Unit } from "../../src/models/device-map.js";
import { checkRooms, parseBytes, placeName, planUnits, resolveMap, shownMap } from "../../src/models/device-map.js";
import { taken } from "../../src/models/units.js";

const unit = (path: string, bytes: number, offloadedBytes = bytes): Unit => ({ path, bytes, offloadedBytes });
const layers = [0, 1, 2, 3].map((i) => unit(`model.layers.${i}`, 100));
const model = [unit("model.embed_tokens", 50), ...layers, unit("model.norm", 1), unit("lm_head", 50)]; // 501

/** The places of the units in their order, short: g0, g1, cpu, disk. */
function plan(rooms: Record<string, number>, strategy: Strategy, units: readonly Unit[] = model): string {
  const { cpu = 0, ...gpus } = rooms;
  const onlyCpu = Object.keys(gpus).length === 0;
  const devices = new Map(Object.entries(onlyCpu ? { cpu } : gpus));
  const { places, main } = planUnits(units, { devices, host: onlyCpu ? 0 : cpu }, strategy);
  expect([...places.keys()]).toEqual(units.map(({ path }) => path));
  expect(main).toBe([...devices.keys()].find((name) => devices.get(name)! > 0));
  return [...places.values()].map((place) => place.replace("cuda:", "g")).join(" ");
}

describe("planUnits", () => {
  it.each<[string, Record<string, number>, Strategy, string]>([
    ["all on the first GPU that has room", { "cuda:0": 501, "cuda:1": 501 }, "auto", "g0 g0 g0 g0 g0 g0 g0"],
    ["in equal shares where one is too small", { "cuda:0": 450, "cuda:1": 450 }, "auto", "g0 g0 g0 g1 g1 g1 g1"],
    ["in equal shares whatever has room", { "cuda:0": 900, "cuda:1": 900 }, "balanced", "g0 g0 g0 g1 g1 g1 g1"],
    ["in shares of three", { "cuda:0": 900, "cuda:1": 900, "cuda:2": 900 }, "balanced", "g0 g0 g1 g1 g2 g2 g2"],
    ["as full as possible", { "cuda:0": 450, "cuda:1": 450 }, "sequential", "g0 g0 g0 g0 g0 g1 g1"],
    ["as full as needed where shares do not do", { "cuda:0": 460, "cuda:1": 60 }, "balanced", "g0 g0 g0 g0 g0 g0 g1"],
    ["around a GPU without room", { "cuda:0": 0, "cuda:1": 501 }, "auto", "g1 g1 g1 g1 g1 g1 g1"],
    // 200 stay free for two layers of 100 that are borrowed.
    ["in host memory, then", { "cuda:0": 450, cpu: 1000 }, "auto", "g0 g0 g0 cpu cpu cpu cpu"],
    ["on disk, at last", { "cuda:0": 450, cpu: 210 }, "auto", "g0 g0 g0 cpu cpu cpu disk"],
    ["on disk without host memory", { "cuda:0": 450 }, "sequential", "g0 g0 g0 disk disk disk disk"],
    ["on the CPU alone", { cpu: 501 }, "auto", "cpu cpu cpu cpu cpu cpu cpu"],
    ["on the CPU, and on disk", { cpu: 450 }, "auto", "cpu cpu cpu disk disk disk disk"],
    ["all on disk but for two at a time", { cpu: 200 }, "balanced", "disk disk disk disk disk disk disk"],
  ])("%s", (_, rooms, strategy, expected) => {
    expect(plan(rooms, strategy)).toBe(expected);
  });

  it("counts what is offloaded by its size there", () => {
    const wide = Array.from({ length: 8 }, (_, i) => unit(`model.layers.${i}`, 100, 200));
    // 400 of 600 are kept for two that are borrowed, and 1000 are five that wait.
    expect(plan({ "cuda:0": 600, cpu: 1000 }, "auto", wide)).toBe("g0 g0 cpu cpu cpu cpu cpu disk");
  });

  it("says what is missing, and where", () => {
    expect(() => plan({ cpu: 150 }, "auto")).toThrow(
      "deviceMap: cpu must have room for two of the layers that are brought to it, 200 bytes, got 150 bytes: 50 bytes are missing",
    );
    const large = layers.map(({ path }) => unit(path, 2 ** 30));
    expect(() => plan({ "cuda:0": 2 ** 30, cpu: 2 ** 40 }, "auto", large)).toThrow(
      /cuda:0 must have room .*, 2\.00 GiB, got 1\.00 GiB: 1\.00 GiB are missing$/,
    );
  });
});

describe("parseBytes", () => {
  it.each([
    ["10GiB", 10 * 2 ** 30],
    ["10GB", 1e10],
    ["1.5 MiB", 1.5 * 2 ** 20],
    ["500KB", 5e5],
    ["7B", 7],
    ["2gB", 2e9],
    [123, 123],
    [0, 0],
  ])("%s", (value, bytes) => {
    expect(parseBytes("cpu", value)).toBe(bytes);
  });

  it.each(["10", "10Gb", "ten GB", "-1GB", "", "GB", -1, 1.5, NaN, Infinity, null, {}])("refuses %s", (value) => {
    expect(() => parseBytes("cuda:0", value)).toThrow(
      'maxMemory: "cuda:0" must be bytes or a text such as "10GiB", "10GB" or "500MB", got',
    );
  });
});

describe("resolveMap", () => {
  const paths = ["", "model", "model.embed_tokens", "model.layers", "model.norm", "lm_head"];
  for (const { path } of layers) paths.push(path, `${path}.mlp`, `${path}.self_attn`);
  const resolve = (map: DeviceMap, tied: { head: string; unit: string } | null = null) => {
    const { places, main } = resolveMap(map, model, paths, tied);
    return `${[...places.values()].map((place) => place.replace("cuda:", "g")).join(" ")} | ${main}`;
  };

  it.each<[DeviceMap, string]>([
    [{ "": 0 }, "g0 g0 g0 g0 g0 g0 g0 | cuda:0"],
    [{ "": "disk" }, "disk disk disk disk disk disk disk | cpu"],
    [{ "": "cpu", "model.layers.2": "cuda:1" }, "cpu cpu cpu g1 cpu cpu cpu | cuda:1"],
    [{ "": "cuda", "model.layers": 1, "model.layers.3": "disk" }, "g0 g1 g1 g1 disk g0 g0 | cuda:0"],
    [{ "": 0, "model.layers.1.mlp": "cuda:0" }, "g0 g0 g0 g0 g0 g0 g0 | cuda:0"],
    [{ model: 0, "model.norm": 1, lm_head: 1 }, "g0 g0 g0 g0 g0 g1 g1 | cuda:0"],
  ])("%j", (map, expected) => {
    expect(resolve(map)).toBe(expected);
  });

  it("takes inner paths for the unit where they agree", () => {
    const inner = { "model.layers.0.mlp": 1, "model.layers.0.self_attn": 1 };
    expect(
      resolve({
        "model.embed_tokens": 0,
        "model.layers.1": 0,
        "model.layers.2": 0,
        "model.layers.3": 0,
        "model.norm": 0,
        lm_head: 0,
        ...inner,
      }),
    ).toBe("g0 g1 g0 g0 g0 g0 g0 | cuda:0");
  });

  it.each<[DeviceMap, string]>([
    [
      { "": 0, "model.layer.1": 1 },
      "deviceMap: keys must be paths of modules, got model.layer.1 (did you mean model.layers.1?)",
    ],
    [
      {},
      "deviceMap: it must have a place for every module, got none for model.embed_tokens, model.layers.0, model.layers.1, model.layers.2, model.layers.3 and 2 more",
    ],
    [{ model: 0 }, "deviceMap: it must have a place for every module, got none for lm_head"],
    [
      { "": 0, "model.layers.1.mlp": 1 },
      "deviceMap: model.layers.1 must be in one place as a whole, got cuda:0 and cuda:1",
    ],
  ])("refuses %j", (map, message) => {
    expect(() => resolve(map)).toThrow(message);
  });

  it("keeps tied ends together", () => {
    const tied = { head: "lm_head", unit: "model.embed_tokens" };
    const untied = model.slice(0, -1);
    const at = (map: DeviceMap) => resolveMap(map, untied, paths, tied).places.get("model.embed_tokens");
    expect(at({ "": 0, "model.embed_tokens": 1, lm_head: 1 })).toBe("cuda:1");
    expect(at({ model: 0 })).toBe("cuda:0");
    expect(() => at({ "": 0, lm_head: "cpu" })).toThrow(
      "deviceMap: lm_head and model.embed_tokens share their weight and must be in one place, got cpu and cuda:0",
    );
  });

  it("is held to what devices may have", () => {
    const resolved = resolveMap({ "": 0, "model.layers.2": "cpu", "model.layers.3": "cpu" }, model, paths, null);
    checkRooms(
      resolved,
      model,
      new Map([
        ["cuda:0", 501],
        ["cpu", 200],
      ]),
    );
    expect(() => checkRooms(resolved, model, new Map([["cuda:0", 500]]))).toThrow(
      "deviceMap: it puts 501 bytes on cuda:0, and maxMemory allows 500 bytes: 1 bytes are missing",
    );
    expect(() => checkRooms(resolved, model, new Map([["cpu", 100]]))).toThrow("it puts 200 bytes on cpu");
  });
});

it("names places and shows maps", () => {
  expect([0, "1", "cuda", "cuda:3", "cpu", "disk"].map((place) => placeName(place))).toEqual([
    "cuda:0",
    "cuda:1",
    "cuda:0",
    "cuda:3",
    "cpu",
    "disk",
  ]);
  expect(
    shownMap(
      new Map([
        ["a", "cpu"],
        ["b", "cpu"],
      ]),
    ),
  ).toEqual({ "": "cpu" });
  expect(
    shownMap(
      new Map([
        ["a", "cpu"],
        ["b", "disk"],
      ]),
    ),
  ).toEqual({ a: "cpu", b: "disk" });
});

it.each([1, 64, 65, 512, 513, 576, 1000, 1024, 5000, 70_000, 2 ** 20, 2 ** 20 + 1, 3_000_000])(
  "knows what the pool takes for %i bytes",
  (nbytes) => {
    emptyCache(); // or a block that is a little larger may be taken again
    const before = memory().devices["cpu"]!.liveBytes;
    using _ = empty([nbytes], { dtype: "uint8", device: "cpu" });
    expect(memory().devices["cpu"]!.liveBytes - before).toBe(taken(nbytes));
  },
);
