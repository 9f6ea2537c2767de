// The GPUs that the published binary is for, as compute capabilities without the dot: Turing to Blackwell.
export const allArchs = ["75", "80", "86", "89", "90", "100", "120"];
