// Test runner: one process per file, so that a native crash costs one file and not the suite.
import { defineConfig } from "vitest/config";

// Under the sanitizers and on the emulated GPU a test may take minutes.
const slow = process.env["BNB_SANITIZED"] === "1" || process.env["BNB_TEST_DEVICE"] !== undefined;

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
