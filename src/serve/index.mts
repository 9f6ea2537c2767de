// bitsandbytes-node/serve for `import`: the same objects that `require` gives.
export * from "./index.js";
