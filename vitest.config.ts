// Test runner: one process per file, so that a native crash costs one file and not the suite.
import { defineConfig } from "vitest/config";

// Under the sanitizers, on the emulated GPU and on an emulated processor a test may take minutes.
const slow = ["BNB_SANITIZED", "BNB_TEST_DEVICE", "BNB_TEST_NODE"].some((name) => process.env[name] !== undefined);

// Another Node.js for the processes that run the tests, such as one for arm64: tools/test/arm64.mjs.
const node = process.env["BNB_TEST_NODE"];
if (node !== undefined) process.execPath = node;

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/global-setup.ts"],
    setupFiles: ["test/setup.ts"],
    pool: "forks",
    maxWorkers: 2,
    execArgv: ["--expose-gc"],
    testTimeout: slow ? 300_000 : 60_000,
    hookTimeout: slow ? 300_000 : 60_000,
  },
});
