// What Linear8bitLt and Embedding8bit share on disk: `weight` int8 [N, K], `SCB` float32 [N], `weight_format` 0.
import { runtime } from "../native/runtime.js";
import { int8VectorwiseQuant } from "../ops/int8.js";
import { to } from "../ops/to-device.js";
import { zeros } from "../tensor/create.js";
import type { Device } from "../tensor/device.js";
import type { ErrorCode } from "../tensor/errors.js";
import { BnbError } from "../tensor/errors.js";
import { tidy } from "../tensor/scope.js";
import { sameShape } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { StateSource } from "./module.js";
import { Parameter } from "./parameter.js";

/** A weight as row-wise codes with their scales. */
export interface Int8Weight {
  codes: Parameter; // int8 [N, K], frozen
  SCB: Tensor; // float32 [N], absmax of each row
  weightFormat: Tensor; // uint8 [], 0: row-major, the only layout there is
}

/** Quantizes a float weight [N, K] from its own dtype, onto a device; the weight itself is left alone. */
export function quantizeWeight(weight: Tensor, device: Device = weight.device): Int8Weight {
  const rows = tidy(() => {
    const { codes, stats } = int8VectorwiseQuant(weight);
    return weight.device === device ? { codes, stats } : { codes: to(codes, device), stats: to(stats, device) };
  });
  return ownWeight(rows.codes, rows.stats);
}

/** Codes and scales that a user gave, checked like those of a checkpoint. The parameter is disposed. Waits. */
export function adoptParams(weight: Tensor, SCB: Tensor): Int8Weight {
  if (hasLowest(weight)) {
    throw new BnbError("ERR_BNB_FORMAT", "Int8Params: the codes must be from -127 to 127, got -128");
  }
  const bad = badScale(SCB);
  if (bad !== undefined) {
    throw new BnbError("ERR_BNB_NONFINITE", `Int8Params: SCB must be finite and not negative, got ${bad}`);
  }
  return ownWeight(weight.detach(), SCB.detach());
}

function ownWeight(codes: Tensor, stats: Tensor): Int8Weight {
  const { device } = codes;
  const own = (t: Tensor): Parameter => new Parameter(t, { requiresGrad: false });
  return { codes: own(codes), SCB: own(stats), weightFormat: own(zeros([], { dtype: "uint8", device })) };
}

/**
 * Plans the loading of a quantized weight from under `prefix` onto a device, checking the codes and scales that come: -128 is
 * written by nobody, scales are finite and not negative, and the layout must be row-major. Reads the values, so it
 * waits for the device.
 */
export function planInt8Weight(
  source: StateSource,
  prefix: string,
  shape: readonly [number, number],
  device: Device,
  adopt: (weight: Int8Weight) => void,
): void {
  const codes = source.take(`${prefix}weight`);
  const stats = source.take(`${prefix}SCB`);
  const format = source.has(`${prefix}weight_format`) ? source.take(`${prefix}weight_format`) : undefined;
  if (!codes || !stats) return;
  const want = (
    holds: boolean,
    key: string,
    rule: string,
    came: string,
    code: ErrorCode = "ERR_BNB_FORMAT",
  ): boolean => {
    if (!holds) source.reject(code, `"${prefix}${key}" must ${rule}, got ${came}`);
    return holds;
  };
  const shapeOrDtype = (t: Tensor, dtype: string): ErrorCode => (t.dtype === dtype ? "ERR_BNB_SHAPE" : "ERR_BNB_DTYPE");
  const describe = (t: Tensor): string => `${t.dtype} [${t.shape.join(", ")}]`;
  const fits =
    want(
      sameShape(codes.shape, shape) && codes.dtype === "int8",
      "weight",
      `be int8 [${shape.join(", ")}]`,
      describe(codes),
      shapeOrDtype(codes, "int8"),
    ) &&
    want(
      sameShape(stats.shape, [shape[0]]) && stats.dtype === "float32",
      "SCB",
      `be float32 [${shape[0]}]`,
      describe(stats),
      shapeOrDtype(stats, "float32"),
    );
  if (!fits) return;
  const layout = format ? format.floatsSync()[0] : 0;
  want(layout === 0, "weight_format", "be 0 (row-major)", String(layout));
  want(!hasLowest(codes), "weight", "hold codes from -127 to 127", "-128");
  const bad = badScale(stats);
  want(bad === undefined, "SCB", "be finite and not negative", String(bad));
  source.plan(() => adopt(ownWeight(source.own(codes, device), source.own(stats, device))));
}

/** Throws ERR_BNB_NONFINITE for scales that loading would refuse. Waits for the device. */
export function checkScales(SCB: Tensor, name: string): void {
  const bad = badScale(SCB);
  if (bad === undefined) return;
  throw new BnbError("ERR_BNB_NONFINITE", `stateDict: "${name}" must be finite to be saved, got ${bad}`);
}

/** Whether a code is -128. Waits for the device. */
function hasLowest(codes: Tensor): boolean {
  return runtime.includesByte(codes.slot, 0x80);
}

function badScale(SCB: Tensor): number | undefined {
  return SCB.floatsSync().find((s) => !(s >= 0 && s < Infinity));
}
