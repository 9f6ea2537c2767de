// What the tests import as "vitest" in the bundle: vitest's own runner and matchers without its server, file
// transforms and command line, which need 60 MB of packages. Becomes node_modules/vitest/index.mjs there.
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  ChaiStyleAssertions,
  chai,
  customMatchers,
  GLOBAL_EXPECT,
  getState,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
} from "@vitest/expect";
import { getCurrentTest, startTests } from "@vitest/runner";
import { getFullName, getTests } from "@vitest/runner/utils";
import { fn, restoreAllMocks, spyOn } from "@vitest/spy";

export { chai } from "@vitest/expect";
export { afterAll, afterEach, beforeAll, beforeEach, describe, it, onTestFinished, suite, test } from "@vitest/runner";

for (const plugin of [JestExtend, JestChaiExpect, ChaiStyleAssertions, JestAsymmetricMatchers]) chai.use(plugin);

export const expect = (value, message) => {
  setState({ assertionCalls: getState(expect).assertionCalls + 1 }, expect);
  const assertion = chai.expect(value, message);
  const test = getCurrentTest();
  return test ? assertion.withTest(test) : assertion;
};
Object.assign(expect, chai.expect, globalThis[ASYMMETRIC_MATCHERS_OBJECT], {
  getState: () => getState(expect),
  setState: (state) => setState(state, expect),
  extend: (matchers) => chai.expect.extend(expect, matchers),
  assert: chai.assert,
  fail: chai.assert.fail,
});
globalThis[GLOBAL_EXPECT] = expect;
setState({ assertionCalls: 0, isExpectingAssertions: false, expectedAssertionsNumber: null }, expect);
expect.extend(customMatchers);

const stubbed = new Map();
/** The real timers while there are others, and what these are to run. */
let realTimers = null;
const waiting = new Map();

/** What the tests use of `vi`. */
export const vi = {
  // Nothing moves above the imports here: enough for what is read at the first call and not at load.
  hoisted(run) {
    return run();
  },
  fn,
  spyOn,
  restoreAllMocks,
  stubEnv(name, value) {
    if (!stubbed.has(name)) stubbed.set(name, process.env[name]);
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
    return vi;
  },
  unstubAllEnvs() {
    for (const [name, value] of stubbed) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    stubbed.clear();
    return vi;
  },
  // Only setTimeout and clearTimeout, whatever is asked for: no test needs more.
  useFakeTimers() {
    const { setTimeout, clearTimeout } = globalThis;
    realTimers ??= { setTimeout, clearTimeout };
    globalThis.setTimeout = (run, _ms, ...args) => {
      const timer = { ref: () => timer, unref: () => timer };
      waiting.set(timer, () => run(...args));
      return timer;
    };
    globalThis.clearTimeout = (timer) => waiting.delete(timer) || realTimers.clearTimeout(timer);
    return vi;
  },
  getTimerCount() {
    return waiting.size;
  },
  runAllTimers() {
    for (const [timer, run] of waiting) {
      waiting.delete(timer);
      run();
    }
    return vi;
  },
  useRealTimers() {
    Object.assign(globalThis, realTimers);
    realTimers = null;
    waiting.clear();
    return vi;
  },
};

/**
 * Runs one test file after the setup files: the counts, and name and message of each failure. `onTest` is told the name
 * of each test before it runs.
 */
export async function runFile(path, { setupFiles, testNamePattern, testTimeout, onTest = () => {} }) {
  const config = {
    root: process.cwd(),
    setupFiles,
    name: undefined,
    passWithNoTests: true,
    testNamePattern,
    allowOnly: false,
    sequence: { seed: 0, hooks: "stack", setupFiles: "list" },
    chaiConfig: undefined,
    maxConcurrency: 1,
    testTimeout,
    hookTimeout: testTimeout,
    retry: 0,
    includeTaskLocation: false,
    tags: [],
    tagsFilter: undefined,
    strictTags: false,
  };
  const onBeforeRunTask = (test) => onTest(getFullName(test));
  const [file] = await startTests([path], { config, onBeforeRunTask, importFile: (name) => import(name) });
  // The stack of a timeout was taken before its message was known.
  const text = ({ stack = "", message }) =>
    (stack.includes(message) ? stack : `${message}\n${stack}`).replace(
      /^ +at .*(?:node_modules|new Promise).*\n?/gm,
      "",
    );
  const errors = (task) => (task.result?.errors ?? []).map(text).join("\n");
  const tests = getTests(file);
  const state = (test) => test.result?.state ?? test.mode;
  const failures = tests
    .filter((test) => state(test) === "fail")
    .map((test) => ({ name: getFullName(test), message: errors(test) }));
  // A file that does not load, or a hook that throws.
  const suites = new Set([file, ...tests.map((test) => test.suite).filter(Boolean)]);
  for (const suite of suites) {
    if (suite.result?.errors?.length) failures.push({ name: suite.name, message: errors(suite) });
  }
  const passed = tests.filter((test) => state(test) === "pass").length;
  const skipped = tests.filter((test) => !["pass", "fail"].includes(state(test))).length;
  return { passed, failed: failures.length, skipped, failures };
}
