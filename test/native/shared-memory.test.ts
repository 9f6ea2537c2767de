// Kernels whose static and dynamic shared memory come to more than the 48 KB that every kernel may have, though the
// dynamic part alone does not: a card launches them only once they were allowed more, and the emulated GPU refuses them
// as a card does. Values are held against the CPU's.
import { describe, expect, it } from "vitest";
import type { DType, Tensor } from "../../src/index.js";
import { attention, backward, cast, devices, layerNorm, mul, rmsNorm, sum, tensor, tidy } from "../../src/index.js";
import { relativeError } from "../helpers/expect-close.js";
import { noise } from "../helpers/noise.js";

const gpu = devices().find((device) => device.type === "cuda");

type Run = (inputs: Tensor[]) => Tensor;

/** The value of `run` and its gradients, all as float32, on one device. */
function gradientsOn(device: string, run: Run, shapes: readonly (readonly number[])[], dtype: DType): Float32Array[] {
  return tidy(() => {
    const inputs = shapes.map((shape, i) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const x = cast(tensor(noise(size, i + 1), { shape, device }), dtype);
      x.requiresGrad = true;
      return x;
    });
    const y = run(inputs);
    backward(sum(mul(y, y)));
    return [y, ...inputs.map((x) => x.grad as Tensor)].map((t) => t.floatsSync());
  });
}

describe.runIf(gpu !== undefined)("shared memory beyond 48 KB", () => {
  const attend: Run = ([q, k, v]) => attention(q as Tensor, k as Tensor, v as Tensor);
  const heads = (t: number, dim: number) => [0, 1, 2].map(() => [1, t, 2, dim]);
  const cases: [name: string, dtype: DType, shapes: readonly (readonly number[])[], run: Run][] = [
    ["attention backward, head dim 64", "float16", heads(70, 64), attend],
    ["attention backward, head dim 64", "bfloat16", heads(70, 64), attend],
    ["attention backward, head dim 32", "bfloat16", heads(70, 32), attend],
    ["attention of wide heads", "float32", heads(40, 160), attend],
    ["attention of wide heads", "float32", heads(40, 192), attend],
    ["attention of wide heads", "float32", heads(40, 256), attend],
    ...[5128, 6144].map(
      (cols) =>
        [
          `layerNorm backward, ${cols} columns`,
          "bfloat16",
          [[3, cols], [cols], [cols]],
          ([x, w, b]: Tensor[]) => layerNorm(x as Tensor, w as Tensor, b as Tensor),
        ] as (typeof cases)[number],
    ),
    ...[11272, 12288].flatMap((cols) =>
      (["bfloat16", "float32"] as const).map(
        (dtype) =>
          [
            `rmsNorm backward, ${cols} columns`,
            dtype,
            [[3, cols], [cols]],
            ([x, w]: Tensor[]) => rmsNorm(x as Tensor, w as Tensor),
          ] as (typeof cases)[number],
      ),
    ),
  ];
  it.each(cases)("%s, %s", (_, dtype, shapes, run) => {
    const wanted = gradientsOn("cpu", run, shapes, dtype);
    const got = gradientsOn(String(gpu), run, shapes, dtype);
    const limit = { float32: 1e-5, float16: 4e-3, bfloat16: 3e-2 }[dtype as "float32"];
    for (const [i, values] of got.entries())
      expect(relativeError(values, wanted[i] as Float32Array), `${i}`).toBeLessThan(limit);
  });
});
