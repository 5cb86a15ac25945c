// The SDK imports a resampler of 2 MB, which it uses in Firefox only.
export const create = undefined;
export const ConverterType = {};
