// Copies of tensors, on the same device or on another.
import { defineOp } from "../autograd/define-op.js";
import { addon } from "../tensor/addon.js";
import { checkTensor } from "../tensor/checks.js";
import type { Device, DeviceLike } from "../tensor/device.js";
import { toDevice } from "../tensor/device.js";
import { run } from "../tensor/run.js";
import type { Tensor } from "../tensor/tensor.js";

const copy = defineOp<[x: Tensor, device: Device], [Device]>({
  name: "to",
  forward(ctx, x, device) {
    ctx.save(x.device);
    return run(addon.toDevice, x, device.index)[0];
  },
  backward(ctx, dy) {
    return run(addon.toDevice, dy, ctx.saved[0].index);
  },
});

/** A copy of x on a device; of the same dtype and shape. Between two devices, each waits for the other; the call does not. */
export function to(x: Tensor, device: DeviceLike): Tensor {
  checkTensor("to", "x", x);
  return copy(x, toDevice(device));
}

/** A copy of x in memory of its own. */
export function clone(x: Tensor): Tensor {
  checkTensor("clone", "x", x);
  return copy(x, x.device);
}
