// Sums vitest's JSON reports and names what failed: node .ci/summary.mjs <folder> <status so far> <runs skipped>. A command that
// failed without failing a test (a build error, a crash, a lint finding) counts as one failure.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";

const [folder = "", status, runsSkipped] = process.argv.slice(2);
let passed = 0;
let failed = 0;
let skipped = Number(runsSkipped);
for (const name of readdirSync(folder).filter((name) => name.endsWith(".json"))) {
  /** @type {import("vitest/node").JsonTestResults} */
  const report = JSON.parse(readFileSync(join(folder, name), "utf8"));
  passed += report.numPassedTests;
  failed += report.numFailedTests;
  skipped += report.numPendingTests + report.numTodoTests;
  for (const file of report.testResults) {
    const run = `${name.replace(".json", "")}: ${relative(process.cwd(), file.name)}`;
    for (const test of file.assertionResults.filter((test) => test.status === "failed")) {
      console.log(`failed in ${run}: ${test.fullName}: ${test.failureMessages?.[0]?.split("\n")[0]}`);
    }
    // A file that does not load has no tests to fail.
    if (file.status === "failed" && file.assertionResults.length === 0) {
      failed++;
      console.log(`failed in ${run}: ${file.message}`);
    }
  }
}
const commands = existsSync(join(folder, "failed"))
  ? readFileSync(join(folder, "failed"), "utf8").trim().split("\n")
  : [];
if (commands.length > 0) console.log(`failed: ${commands.join("; ")}`);
if (skipped > 0) console.log(`${skipped} skipped`);
if (failed === 0) failed = commands.length;
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 || status !== "0" ? 1 : 0;
