/* Generated from crates/node by `npm run build`; not edited by hand. */

/** Numbers of any type; Uint16Array holds the bits of half-precision numbers. */
export type Numbers = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint16Array
export type Floats = Float32Array | Float64Array
