// Types of the one function of node-gyp-build that we call.
declare module "node-gyp-build" {
  const load: {
    /** The path of build/Release/*.node or prebuilds/<platform>-<arch>/*.node under a folder. */
    path(folder: string): string;
  };
  export default load;
}
