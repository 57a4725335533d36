/** Reading `.onnx_adapter`: the file native ONNX Runtime maps into memory, and the one this module fetches. */

import { ByteBuffer } from "flatbuffers";

import { AdapterError, AdapterMismatchError } from "./errors.js";

/**
 * @typedef {{ dims: number[], data: Float32Array, form?: "fp32" | "fp16" | "int8" }} SlotTensor  `form`: how a file stores it.
 * @typedef {{ modelVersion: number, adapterVersion: number, tensors: Map<string, SlotTensor> }} AdapterFile
 */

// onnxruntime/lora/adapter_format/adapter_schema.fbs, format version 1. A field's number n has vtable offset 4 + 2n.
const IDENTIFIER = "TORT";
const FORMAT_VERSION = 1;
const ADAPTER = { formatVersion: 4, adapterVersion: 6, modelVersion: 8, parameters: 10 };
const PARAMETER = { name: 4, dims: 6, dataType: 8, rawData: 10 };
const [FLOAT, INT8, HALF] = [1, 3, 10]; // TensorProto.DataType
const WIDTH = { [FLOAT]: 4, [INT8]: 1, [HALF]: 2 };
// How the name of the scales of a tensor in 8 bits ends.
const SCALE = "/scale";

/**
 * The tensors of an `.onnx_adapter` file, expanded to float32.
 *
 * @param {Uint8Array} bytes
 * @param {string} where  For messages.
 * @returns {AdapterFile}
 * @throws {AdapterError} Where the file is damaged or holds something else than float32, float16, or 8 bits with scales.
 */
export function readAdapter(bytes, where) {
  try {
    const file = parse(bytes);
    return { ...file, tensors: expanded(file.tensors) };
  } catch (error) {
    if (error instanceof AdapterError) throw error;
    const reason = /** @type {Error} */ (error).message;
    throw new AdapterError(`${where} is not a readable .onnx_adapter file (truncated or damaged?): ${reason}`, { cause: error });
  }
}

/** A tensor as it lies in the file. @typedef {{ dims: number[], data: Float32Array | Int8Array | Uint16Array, type: number }} Stored */

/** @param {Map<string, Stored>} held @returns {Map<string, SlotTensor>} */
function expanded(held) {
  /** @type {Map<string, SlotTensor>} */
  const tensors = new Map();
  for (const [name, { dims, data, type }] of held) {
    if (name.endsWith(SCALE) && held.get(name.slice(0, -SCALE.length))?.type === INT8) continue;
    const form = type === INT8 ? "int8" : type === HALF ? "fp16" : "fp32";
    if (type === INT8) tensors.set(name, { dims, data: timesScales(name, dims, data, held.get(`${name}${SCALE}`)), form });
    else tensors.set(name, { dims, data: type === HALF ? fromHalf(/** @type {Uint16Array} */ (data)) : /** @type {Float32Array} */ (data), form });
  }
  return tensors;
}

/** @param {string} name @param {number[]} dims @param {Stored["data"]} data @param {Stored | undefined} scale @returns {Float32Array} */
function timesScales(name, dims, data, scale) {
  const wide = scale?.dims.flatMap((size, axis) => (size === 1 ? [] : [axis])) ?? [];
  const [axis = 0] = wide;
  if (scale?.type !== FLOAT || scale.dims.length !== dims.length || wide.length > 1 || (wide.length && scale.dims[axis] !== dims[axis])) {
    throw new Error(`${name} is in 8 bits, and its scales are ${scale ? `[${scale.dims}]` : "none"}`);
  }
  const size = scale.dims[axis] ?? 1;
  const stride = dims.slice(axis + 1).reduce((product, dim) => product * dim, 1);
  // A Float32Array rounds each product to float32, as the other runtimes do.
  return Float32Array.from(data, (q, i) => q * /** @type {number} */ (scale.data[Math.floor(i / stride) % size]));
}

/** @type {Float32Array | undefined} */
let halves;

/** @param {Uint16Array} data @returns {Float32Array} */
function fromHalf(data) {
  halves ??= Float32Array.from({ length: 1 << 16 }, (_, bits) => half(bits));
  const table = halves;
  return Float32Array.from(data, (bits) => /** @type {number} */ (table[bits]));
}

/** The number that 16 bits of IEEE 754 stand for. @param {number} bits */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 0x3ff) / 1024;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction) : sign * 2 ** -14 * fraction;
}

/** @param {Uint8Array} bytes @returns {{ modelVersion: number, adapterVersion: number, tensors: Map<string, Stored> }} */
function parse(bytes) {
  // ByteBuffer returns garbage beyond its end where a DataView throws: every position is checked before it is read.
  const buffer = new ByteBuffer(bytes);
  /** @param {number} at @param {number} size */
  const within = (at, size) => {
    if (!(at >= 0 && size >= 0 && at + size <= bytes.length)) throw new Error(`it points to byte ${at + size} of ${bytes.length}`);
    return at;
  };
  /** @param {number} at */
  const indirect = (at) => within(buffer.__indirect(within(at, 4)), 4);
  /** @param {number} table @param {number} slot */
  const field = (table, slot) => {
    const offset = buffer.__offset(within(table, 4), slot);
    return offset === 0 ? 0 : within(table + offset, 4);
  };
  /** @param {number} table @param {number} slot */
  const int = (table, slot) => {
    const at = field(table, slot);
    return at === 0 ? 0 : buffer.readInt32(at);
  };
  /** Start and length of a vector. @param {number} table @param {number} slot @param {number} width @returns {[number, number]} */
  const vector = (table, slot, width) => {
    const at = field(table, slot);
    if (at === 0) return [0, 0];
    const start = indirect(at);
    const length = buffer.readInt32(start);
    return [within(start + 4, length * width), length];
  };

  within(0, 8);
  if (String.fromCharCode(...bytes.subarray(4, 8)) !== IDENTIFIER) throw new Error(`it does not begin with ${IDENTIFIER}`);
  const root = indirect(0);
  const version = int(root, ADAPTER.formatVersion);
  if (version !== FORMAT_VERSION) throw new Error(`its format version is ${version}, not ${FORMAT_VERSION}`);
  /** @type {Map<string, Stored>} */
  const tensors = new Map();
  const [first, count] = vector(root, ADAPTER.parameters, 4);
  for (let i = 0; i < count; i++) {
    const parameter = indirect(first + 4 * i);
    const [nameAt, nameLength] = vector(parameter, PARAMETER.name, 1);
    const name = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(nameAt, nameAt + nameLength));
    const [dimsAt, rank] = vector(parameter, PARAMETER.dims, 8);
    const dims = Array.from({ length: rank }, (_, d) => Number(buffer.readInt64(dimsAt + 8 * d)));
    const type = int(parameter, PARAMETER.dataType);
    const [dataAt, length] = vector(parameter, PARAMETER.rawData, 1);
    const width = WIDTH[/** @type {keyof typeof WIDTH} */ (type)];
    if (width === undefined) throw new AdapterMismatchError(`${name} has data type ${type}, slots take float32 (${FLOAT})`);
    if (dims.some((d) => d < 0) || dims.reduce((product, d) => product * d, width) !== length) {
      throw new Error(`${name} has ${length} bytes for shape [${dims}]`);
    }
    // A copy, since an array of wider numbers must begin at a multiple of their width.
    const { buffer: copied } = bytes.slice(dataAt, dataAt + length);
    const data = type === INT8 ? new Int8Array(copied) : type === HALF ? new Uint16Array(copied) : new Float32Array(copied);
    tensors.set(name, { dims, data, type });
  }
  return { modelVersion: int(root, ADAPTER.modelVersion), adapterVersion: int(root, ADAPTER.adapterVersion), tensors };
}

/**
 * Refuse a file that does not hold exactly what the manifest says, or that carries another base's identity.
 *
 * @param {AdapterFile} file
 * @param {string} name
 * @param {{ tensors: Record<string, number[]>, form?: "fp32" | "fp16" | "int8", base_identity: string, slots_hash: string }} entry
 * @param {string} where
 * @throws {AdapterMismatchError}
 */
export function checkAdapterFile(file, name, entry, where) {
  const names = new Set([...file.tensors.keys(), ...Object.keys(entry.tensors)]);
  for (const tensor of names) {
    const found = file.tensors.get(tensor)?.dims;
    const expected = entry.tensors[tensor];
    if (!found || !expected || found.length !== expected.length || found.some((d, i) => d !== expected[i])) {
      throw new AdapterMismatchError(
        `${where}: adapter '${name}' should hold ${tensor} with shape ${expected ? `[${expected}]` : "none"}, ` +
          `the file has ${found ? `[${found}]` : "none"}`,
      );
    }
  }
  const form = entry.form ?? "fp32";
  // All else than factors is in float16 where factors are in 8 bits.
  const odd = [...file.tensors].find(([, tensor]) => tensor.form !== form && !(form === "int8" && tensor.form === "fp16"));
  if (odd) {
    const taken = form === "fp32" ? "slots take float32" : `the manifest says that it is stored in ${form}`;
    throw new AdapterMismatchError(`${where}: adapter '${name}': ${odd[0]} is stored in ${odd[1].form}, ${taken}`);
  }
  for (const [what, found, expected] of /** @type {const} */ ([
    ["base identity", file.modelVersion, versionNumber(entry.base_identity)],
    ["slot schema", file.adapterVersion, versionNumber(entry.slots_hash)],
  ])) {
    if (found !== expected) {
      throw new AdapterMismatchError(`${where}: adapter '${name}' carries ${what} number ${found}, this base's is ${expected}`);
    }
  }
}

/**
 * 31 bits of a hash: what fits into the version fields of the file.
 *
 * @param {string} digest  64 hexadecimal digits.
 */
export function versionNumber(digest) {
  return Number.parseInt(digest.slice(0, 8), 16) & 0x7fffffff;
}
