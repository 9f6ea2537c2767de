// The ops, by family.
export * from "./matmul.js";
