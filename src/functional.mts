// bitsandbytes-node/functional for `import`: the same objects that `require` gives.
export * from "./functional.js";
