// The devices that a test of an op runs on: the CPU always, CUDA (real or emulated) when the addon has one.
import { devices } from "../../src/index.js";

/** Names for `describe.each`: "cpu", and "cuda:0" and so on when present. */
export function testDevices(): string[] {
  return devices().map((device) => String(device));
}
