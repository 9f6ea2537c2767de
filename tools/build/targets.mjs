// What is published: the platforms that have a prebuilt binary, and the GPUs that the one for x64 has kernels for, as compute
// capabilities without the dot: Turing to Blackwell.
export const published = ["linux-x64", "linux-arm64"];
export const allArchs = ["75", "80", "86", "89", "90", "100", "120"];
