// Test runner: two processes, which load the library once and run one file after the other. Tests of the addon and of memory
// have a process for each file: they break devices, count what lives, and set what the addon reads only once.
import { configDefaults, defineConfig } from "vitest/config";

// Under the sanitizers, on the emulated GPU and on an emulated processor a test may take minutes.
const slow = ["BNB_SANITIZED", "BNB_TEST_DEVICE", "BNB_TEST_NODE"].some((name) => process.env[name] !== undefined);

// Another Node.js for the processes that run the tests, such as one for arm64: tools/test/arm64.mjs.
const node = process.env["BNB_TEST_NODE"];
if (node !== undefined) process.execPath = node;

// Files to leave out, with spaces between: what the command line excludes, vitest takes from no project.
const excluded = (process.env["BNB_TEST_EXCLUDE"] ?? "").split(/\s+/).filter(Boolean);

const alone = ["test/native/**/*.test.ts", "test/memory/**/*.test.ts", "test/ops/matmul-mma.test.ts"];

export default defineConfig({
  test: {
    globalSetup: ["test/global-setup.ts"],
    setupFiles: ["test/setup.ts"],
    pool: "forks",
    maxWorkers: 2,
    execArgv: ["--expose-gc"],
    testTimeout: slow ? 300_000 : 60_000,
    hookTimeout: slow ? 300_000 : 60_000,
    projects: [
      {
        extends: true,
        test: {
          name: "together",
          isolate: false,
          include: ["test/**/*.test.ts"],
          exclude: [...configDefaults.exclude, ...alone, ...excluded],
        },
      },
      { extends: true, test: { name: "alone", include: alone, exclude: excluded } },
    ],
  },
});
