/** Numbers in 16 bits (IEEE 754 binary16), as ONNX Runtime Web takes and gives them. */

/**
 * Where the engine has Float16Array, ONNX Runtime Web wants it; elsewhere the bits, in a Uint16Array.
 *
 * @typedef {ArrayLike<number> & { length: number, buffer: ArrayBufferLike }} Halves
 */

const Native = /** @type {any} */ (globalThis).Float16Array;
const [single, bits] = [new Float32Array(1), new Uint32Array(1)];

/**
 * The bits of the nearest half; of two as near, the even one. Beyond 65,504 that is infinity.
 *
 * @param {number} x @returns {number}
 */
export function halfBits(x) {
  single[0] = x;
  bits.set(new Uint32Array(single.buffer));
  const whole = /** @type {number} */ (bits[0]);
  const sign = (whole >>> 16) & 0x8000;
  const size = whole & 0x7fffffff;
  if (size >= 0x7f800000) return sign | 0x7c00 | (size > 0x7f800000 ? 0x200 : 0);
  if (size >= 0x477ff000) return sign | 0x7c00;
  if (size >= 0x38800000) return sign | rounded(size - 0x38000000, 13);
  // Below the smallest normal half the step stays the same: 2^-24.
  const shift = 126 - (size >>> 23);
  return shift > 24 ? sign : sign | rounded((size & 0x7fffff) | 0x800000, shift);
}

/** @param {number} value @param {number} shift  How many bits are given up. */
function rounded(value, shift) {
  const [kept, lost, half] = [value >>> shift, value & ((1 << shift) - 1), 1 << (shift - 1)];
  return kept + (lost > half || (lost === half && kept & 1) ? 1 : 0);
}

/** @param {ArrayLike<number>} numbers @returns {Halves} */
export function toHalves(numbers) {
  return Native === undefined ? Uint16Array.from(numbers, halfBits) : Native.from(numbers);
}

/** An array of a kind that tensors of halves hold. @param {number} length @returns {Halves} */
export function emptyHalves(length) {
  return Native === undefined ? new Uint16Array(length) : new Native(length);
}
