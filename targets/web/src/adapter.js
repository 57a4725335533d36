/** Reading `.onnx_adapter`: the file native ONNX Runtime maps into memory, and the one this module fetches. */

import { ByteBuffer } from "flatbuffers";

import { AdapterError, AdapterMismatchError } from "./errors.js";

/**
 * @typedef {{ dims: number[], data: Float32Array }} SlotTensor
 * @typedef {{ modelVersion: number, adapterVersion: number, tensors: Map<string, SlotTensor> }} AdapterFile
 */

// onnxruntime/lora/adapter_format/adapter_schema.fbs, format version 1. A field's number n has vtable offset 4 + 2n.
const IDENTIFIER = "TORT";
const FORMAT_VERSION = 1;
const ADAPTER = { formatVersion: 4, adapterVersion: 6, modelVersion: 8, parameters: 10 };
const PARAMETER = { name: 4, dims: 6, dataType: 8, rawData: 10 };
const FLOAT = 1; // TensorProto.DataType

/**
 * The tensors of an `.onnx_adapter` file.
 *
 * @param {Uint8Array} bytes
 * @param {string} where  For messages.
 * @returns {AdapterFile}
 * @throws {AdapterError} Where the file is damaged or holds something else than float32.
 */
export function readAdapter(bytes, where) {
  try {
    return parse(bytes);
  } catch (error) {
    if (error instanceof AdapterError) throw error;
    const reason = /** @type {Error} */ (error).message;
    throw new AdapterError(`${where} is not a readable .onnx_adapter file (truncated or damaged?): ${reason}`, { cause: error });
  }
}

/** @param {Uint8Array} bytes @returns {AdapterFile} */
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
  /** @type {AdapterFile["tensors"]} */
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
    if (type !== FLOAT) throw new AdapterMismatchError(`${name} has data type ${type}, slots take float32 (${FLOAT})`);
    if (dims.some((d) => d < 0) || dims.reduce((product, d) => product * d, 4) !== length) {
      throw new Error(`${name} has ${length} bytes for shape [${dims}]`);
    }
    // A copy, since a Float32Array must begin at a multiple of four.
    tensors.set(name, { dims, data: new Float32Array(bytes.slice(dataAt, dataAt + length).buffer) });
  }
  return { modelVersion: int(root, ADAPTER.modelVersion), adapterVersion: int(root, ADAPTER.adapterVersion), tensors };
}

/**
 * Refuse a file that does not hold exactly what the manifest says, or that carries another base's identity.
 *
 * @param {AdapterFile} file
 * @param {string} name
 * @param {{ tensors: Record<string, number[]>, base_identity: string, slots_hash: string }} entry
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
