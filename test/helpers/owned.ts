// What tests make and need not dispose themselves.
import { afterEach } from "vitest";

const owned: { dispose(): void }[] = [];
afterEach(() => {
  for (const value of owned.splice(0)) value.dispose();
});

/** Disposes `value` when the test is over. */
export function own<T extends { dispose(): void }>(value: T): T {
  owned.push(value);
  return value;
}
