// Test runner: one process per file, so that a native crash costs one file and not the suite.
import { defineConfig } from "vitest/config";

const sanitized = process.env["BNB_SANITIZED"] === "1";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/global-setup.ts"],
    setupFiles: ["test/setup.ts"],
    pool: "forks",
    maxWorkers: 2,
    execArgv: ["--expose-gc"],
    testTimeout: sanitized ? 300_000 : 60_000,
    hookTimeout: sanitized ? 300_000 : 60_000,
  },
});
