// Types of the one function of node-gyp-build that we call.
declare module "node-gyp-build" {
  /** Loads build/Release/*.node or prebuilds/<platform>-<arch>/*.node under a folder. */
  export default function load(folder: string): unknown;
}
