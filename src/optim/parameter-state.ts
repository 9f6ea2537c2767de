// What an optimizer remembers about one parameter: float32 moments, or uint8 codes of the dynamic maps with one scale
// (absmax) per 256 elements.
import { fromBytes } from "../tensor/create.js";
import type { DType } from "../tensor/dtype.js";
import { sizeOf } from "../tensor/dtype.js";
import { keep } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import type { OptimizerName } from "./update-rule.js";
import { firstStateRows, hasSecondState, stateBlocksize } from "./update-rule.js";

/** The state of one parameter. */
export interface ParameterState {
  /** Updates so far. */
  step: number;
  state1: Tensor;
  state2: Tensor | null;
  /** Present exactly when the states are 8-bit. */
  absmax1: Tensor | null;
  absmax2: Tensor | null;
  /** LAMB and LARS: the norm of the last update. */
  unormVec: Tensor | null;
}

/** Tensors of a state, for disposal. */
export function stateTensors(s: ParameterState): Tensor[] {
  return [s.state1, s.state2, s.absmax1, s.absmax2, s.unormVec].filter((t): t is Tensor => t !== null);
}

/** Shapes of the states of a parameter. */
export function stateShapes(rule: OptimizerName, p: Tensor) {
  const rows = firstStateRows(rule);
  const blocks = Math.ceil(p.size / stateBlocksize);
  return {
    state1: rows === 1 ? p.shape : [rows, ...p.shape],
    state2: p.shape,
    absmax1: rows === 1 ? [blocks] : [rows, blocks],
    absmax2: [blocks],
  };
}

/** A state of zeros, which belongs to no `tidy`. */
export function newState(
  rule: OptimizerName,
  p: Tensor,
  { optimBits, min8bitSize }: { optimBits: 8 | 32; min8bitSize: number },
): ParameterState {
  const { size } = p;
  const shapes = stateShapes(rule, p);
  const is8bit = optimBits === 8 && size >= min8bitSize;
  const hasSecond = hasSecondState(rule);
  const dtype = is8bit ? "uint8" : "float32";
  return {
    step: 0,
    // 127 and 0 are the codes of zero in the signed and in the unsigned map.
    state1: filled(p, shapes.state1, dtype, is8bit ? 127 : 0),
    state2: hasSecond ? filled(p, shapes.state2, dtype) : null,
    absmax1: is8bit ? filled(p, shapes.absmax1) : null,
    absmax2: is8bit && hasSecond ? filled(p, shapes.absmax2) : null,
    unormVec: newNorm(rule, p),
  };
}

/** Whether the norm of the last update is part of the state. */
export function keepsNorm(rule: OptimizerName): boolean {
  return rule === "lamb" || rule === "lars";
}

/** Where the rules with a clipped update leave its norm; null for the others. */
export function newNorm(rule: OptimizerName, p: Tensor): Tensor | null {
  return keepsNorm(rule) ? filled(p, [1]) : null;
}

// A tensor of equal bytes on the device of p.
function filled(p: Tensor, shape: readonly number[], dtype: DType = "float32", byte = 0): Tensor {
  const nbytes = shape.reduce((n, dim) => n * dim, sizeOf(dtype));
  return keep(fromBytes(new Uint8Array(nbytes).fill(byte), { dtype, shape, device: p.device }));
}
