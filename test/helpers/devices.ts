// The devices that a test of an op runs on.
import { devices } from "../../src/index.js";

/**
 * Names for `describe.each`: "cpu", and "cuda:0" and so on when present. A run for a GPU (BNB_TEST_DEVICE) leaves the CPU to
 * the run without one.
 */
export function testDevices(): string[] {
  const names = devices().map((device) => String(device));
  return process.env.BNB_TEST_DEVICE ? names.filter((name) => name !== "cpu") : names;
}
