/** The slots of a base, and the contract that adapters have with it. */

import { AdapterMismatchError } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").SlotPart} SlotPart
 * @typedef {import("./manifest.js").Dim} Dim
 */

/**
 * Name and shape of every slot tensor; strings are symbolic sizes.
 *
 * @param {Manifest} manifest
 * @returns {Map<string, Dim[]>}
 */
export function slotTensors(manifest) {
  /** @type {Map<string, Dim[]>} */
  const tensors = new Map();
  for (const slot of manifest.slots.linear) {
    tensors.set(slot.a, ["adapter_batch", slot.in_features, slot.rank]);
    tensors.set(slot.b, ["adapter_batch", slot.rank, slot.out_features]);
    if (slot.out_gain !== null) tensors.set(slot.out_gain, ["adapter_batch", 1, slot.out_features]);
    if (slot.in_gain !== null) tensors.set(slot.in_gain, ["adapter_batch", 1, slot.in_features]);
  }
  for (const { a, b, rank, in_channels, out_channels, kernel, out_gain } of manifest.slots.convolutions) {
    const points = kernel.map(() => 1);
    tensors.set(a, [rank, in_channels, ...kernel]);
    tensors.set(b, [out_channels, rank, ...points]);
    if (out_gain !== null) tensors.set(out_gain, [1, out_channels, ...points]);
  }
  for (const { a, b, rank, rows, width } of manifest.slots.embeddings) {
    tensors.set(a, [rows, rank]);
    tensors.set(b, [rank, width]);
  }
  for (const slot of manifest.slots.overrides) tensors.set(slot.tensor, slot.shape);
  return tensors;
}

/**
 * Every slot that takes two factors, with the axes of `a` and `b` that are the rank.
 *
 * @param {Manifest} manifest
 * @returns {{ a: string, b: string, axes: [number, number] }[]}
 */
export function factoredSlots(manifest) {
  const { linear, convolutions, embeddings } = manifest.slots;
  return [
    ...linear.map(({ a, b }) => ({ a, b, axes: /** @type {[number, number]} */ ([2, 1]) })),
    ...convolutions.map(({ a, b }) => ({ a, b, axes: /** @type {[number, number]} */ ([0, 1]) })),
    ...embeddings.map(({ a, b }) => ({ a, b, axes: /** @type {[number, number]} */ ([1, 0]) })),
  ];
}

const CACHE = /^past_key_values\.(\d+\.(?:key|value))$/;

/**
 * What an adapter that stands before the sequence holds: one tensor for each cache input of the base.
 *
 * @param {Manifest} manifest
 * @returns {Map<string, { input: string, shape: Dim[] }>}
 */
export function prefixTensors(manifest) {
  return new Map(
    manifest.inputs.flatMap(({ name, shape }) => {
      const [, place] = CACHE.exec(name) ?? [];
      const [, heads, , width] = shape;
      if (place === undefined || heads === undefined || width === undefined) return [];
      return [[`prefix.${place}`, { input: name, shape: [1, heads, "prefix_length", width] }]];
    }),
  );
}

/**
 * Refuse adapters whose contract is not with this base: identity, slot schema, tensor names and shapes.
 *
 * @param {Manifest} manifest
 * @param {string} where
 * @param {string} slotsHash  The hash of the manifest's own slot table.
 * @throws {AdapterMismatchError}
 */
export function checkAdapters(manifest, where, slotsHash) {
  const slots = slotTensors(manifest);
  const states = prefixTensors(manifest);
  for (const [name, entry] of Object.entries(manifest.adapters)) {
    for (const [what, found, expected] of /** @type {const} */ ([
      ["base identity", entry.base_identity, manifest.base.identity],
      ["slot schema", entry.slots_hash, slotsHash],
    ])) {
      if (found !== expected) {
        throw new AdapterMismatchError(
          `${where}: adapter '${name}' was made for ${what} ${found.slice(0, 16)}…, this base has ${expected.slice(0, 16)}…. ` +
            "Remove it, or add it again from its checkpoint.",
        );
      }
    }
    for (const tensor of entry.prefix_length ? states.keys() : []) {
      if (!entry.tensors[tensor]) {
        throw new AdapterMismatchError(`${where}: adapter '${name}' puts ${entry.prefix_length} states before the sequence, at ${tensor} it has none`);
      }
    }
    for (const [tensor, shape] of Object.entries(entry.tensors)) {
      const prefix = entry.prefix_length ? states.get(tensor)?.shape.with(2, entry.prefix_length) : undefined;
      const expected = slots.get(tensor) ?? prefix;
      if (expected === undefined) {
        throw new AdapterMismatchError(`${where}: adapter '${name}' fills ${tensor}, which is not a slot of this base`);
      }
      if (shape.length !== expected.length || expected.some((e, i) => typeof e === "number" && e !== shape[i])) {
        throw new AdapterMismatchError(`${where}: adapter '${name}', ${tensor} has shape [${shape}], the slot takes [${expected}]`);
      }
    }
  }
}

/**
 * The text whose sha256 is the slot schema hash: Python's `json.dumps(…, sort_keys=True)` of names, shapes and sites.
 *
 * @param {Manifest} manifest
 */
export function slotSignature(manifest) {
  const tensors = Object.fromEntries(slotTensors(manifest));
  const parts = Object.fromEntries(manifest.slots.linear.map((slot) => [slot.name, slot.parts.map(signed)]));
  return pythonJson({ parts, tensors });
}

/** Which outputs of its site a part has is left out where it has all. @param {SlotPart} part */
const signed = ({ site, offset, size, start, step, of }) => (of === null ? { site, offset, size } : { site, offset, size, start, step, of });

/** @param {unknown} value @returns {string} */
function pythonJson(value) {
  if (Array.isArray(value)) return `[${value.map(pythonJson).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([k, v]) => `${pythonJson(k)}: ${pythonJson(v)}`).join(", ")}}`;
  }
  // Python writes every character beyond ASCII as \uXXXX.
  return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
