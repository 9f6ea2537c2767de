// The process that calls: `child.mjs SEED FROM CALLS [verbose]`. It writes the index of each call to descriptor 3 before it
// begins, so that the parent knows where it died, and a line of JSON for each call that failed.
import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { inspect } from "node:util";
import { runCall } from "./plan.mjs";
import { Random, UserError } from "./values.mjs";

const [seed, from, calls] = process.argv.slice(2, 5).map(Number);
const verbose = process.argv[5] === "verbose";
const B = createRequire(import.meta.url)("../../../dist/index.js");

/** A value in one line. @param {any} value */
function show(value) {
  try {
    if (value instanceof B.Tensor) {
      const { dtype, shape, disposed, requiresGrad } = /** @type {any} */ (value);
      return `${value.constructor.name}(${dtype} [${shape}]${requiresGrad ? " grad" : ""}${disposed ? " disposed" : ""})`;
    }
    return inspect(value, { depth: 2, breakLength: Infinity, maxArrayLength: 6, maxStringLength: 60 }).slice(0, 300);
  } catch {
    return "(a hostile object)";
  }
}

/**
 * Why an error is a fault of the library, or null. It must be a BnbError. Errors that a hostile value itself threw are the
 * user's: a UserError, or the engine's when a revoked proxy or an object without a primitive value was touched.
 * @param {any} error
 */
function fault(error) {
  for (let cause = error; cause; cause = cause.cause) if (cause instanceof UserError) return null;
  if (error instanceof B.BnbError) return null;
  // A class is a function: that it cannot be called back is its own error.
  if (/^Class constructor \w+ cannot be invoked/.test(error?.message)) return null;
  return String(error?.stack ?? error)
    .split("\n")
    .slice(0, 6)
    .join("\n");
}

/** @type {string[]} */
let trace = [];
let current = from;
const report = (/** @type {string} */ what) =>
  writeSync(3, `${JSON.stringify({ index: current, trace: trace.slice(-4), what })}\n`);
process.on("unhandledRejection", (error) => {
  const what = fault(error);
  report(`unhandled rejection: ${what ?? error}`);
});
process.on("uncaughtException", (error) => report(`uncaught: ${fault(error) ?? error}`));
process.on("warning", () => {});

for (current = from; current < from + calls; current++) {
  writeSync(3, `${current}\n`);
  trace = [];
  const note = (/** @type {string} */ what, /** @type {unknown[]} */ args) => {
    const line = `${what}(${args.map(show).join(", ")})`;
    trace.push(line);
    if (verbose) console.log(line);
  };
  try {
    await runCall({ B, r: new Random(seed, current), note });
  } catch (error) {
    const what = fault(error);
    if (verbose) console.log(error);
    if (what) report(what);
  }
  try {
    if (current % 16 === 0) await B.synchronize();
  } catch (error) {
    const what = fault(error);
    if (what) report(what);
  }
  // Promises that nobody waited for are rejected before the next call begins.
  if (current % 64 === 0) {
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc?.();
  }
}
process.exit(0);
