/** Blends, weighted sums of adapters: exact, by setting their factors side by side. */

import { checkLinear, multiplied } from "./active.js";
import { InputError } from "./errors.js";
import { headOf } from "./heads.js";
import { findAdapter } from "./manifest.js";
import { factoredSlots } from "./slots.js";

/**
 * @typedef {import("./adapter.js").SlotTensor} SlotTensor
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {Map<string, SlotTensor>} Tensors
 * @typedef {Record<string, number>} Weights
 */

/** A blend as its call says it: `a=0.7, b=0.3`. @param {Weights} weights */
export const describeBlend = (weights) =>
  Object.entries(weights)
    .map(([name, weight]) => `${name}=${weight}`)
    .join(", ");

/**
 * Refuse weights that are not finite, adapters that have no weighted sum, and a head that is not among them.
 *
 * @param {Manifest} manifest @param {string} where @param {Weights} weights @param {string | undefined} head
 * @throws {InputError}
 */
export function checkBlend(manifest, where, weights, head) {
  const names = Object.keys(weights);
  if (!names.length) throw new InputError("a blend needs at least one adapter with a weight, for example { a: 0.7, b: 0.3 }");
  for (const name of names) {
    const entry = findAdapter(manifest, where, name);
    const weight = weights[name];
    if (typeof weight !== "number" || !Number.isFinite(weight))
      throw new InputError(`the weight of adapter '${name}' must be a finite number, found ${weight}`);
    checkLinear(name, entry, "blended");
  }
  if (head !== undefined && !names.includes(head)) throw new InputError(`head '${head}' is not among the adapters of the blend: ${names.join(", ")}`);
}

/**
 * The slot tensors of `W + Σ w_i A_i B_i` at every site: A's side by side along the rank, B's below each other with the weights
 * folded in. Parameters that the adapters replace (heads, biases, norms) must be equal in all of them, or are taken from `head`.
 *
 * @param {Manifest} manifest @param {Weights} weights @param {number} scale @param {string | undefined} head
 * @param {Map<string, Tensors>} loaded  Each adapter's tensors.
 * @returns {Tensors}
 * @throws {InputError} For replaced parameters that differ.
 */
export function blendTensors(manifest, weights, scale, head, loaded) {
  /** @type {Tensors} */
  const tensors = new Map();
  for (const slot of factoredSlots(manifest)) {
    const inside = Object.keys(weights).filter((name) => weights[name] !== 0 && loaded.get(name)?.has(slot.b));
    if (!inside.length) continue;
    /** @param {string} name @param {string} tensor */
    const of = (name, tensor) => /** @type {SlotTensor} */ (loaded.get(name)?.get(tensor));
    tensors.set(
      slot.a,
      concatenate(
        inside.map((name) => of(name, slot.a)),
        slot.axes[0],
      ),
    );
    tensors.set(
      slot.b,
      concatenate(
        inside.map((name) => times(of(name, slot.b), scale * (weights[name] ?? 0))),
        slot.axes[1],
      ),
    );
  }
  for (const { tensor, parameter } of manifest.slots.overrides) {
    const taken = replacement(parameter, tensor, loaded, head);
    if (taken !== undefined) tensors.set(tensor, taken);
  }
  return tensors;
}

/** The head that a blend runs with: the chosen adapter's, else the first that has labels of its own. @param {Manifest} manifest @param {Weights} weights @param {string | undefined} head */
export function blendHead(manifest, weights, head) {
  const names = Object.keys(weights);
  return headOf(manifest, head ?? names.find((name) => manifest.adapters[name]?.labels) ?? names[0] ?? null);
}

/** The adapter whose tokenizer and template a blend has: the one with the largest share. @param {Record<string, number>} weights */
export function blendText(weights) {
  return Object.keys(weights).reduce((best, name) => (Math.abs(weights[name] ?? 0) > Math.abs(weights[best] ?? 0) ? name : best));
}

/** @param {SlotTensor} tensor @param {number} factor @returns {SlotTensor} */
const times = ({ dims, data }, factor) => ({ dims, data: multiplied(data, factor) });

/** @param {string} parameter @param {string} tensor @param {Map<string, Tensors>} loaded @param {string | undefined} head */
function replacement(parameter, tensor, loaded, head) {
  if (head !== undefined) return loaded.get(head)?.get(tensor);
  const [[first = "", own] = [], ...others] = [...loaded].map(([name, tensors]) => /** @type {const} */ ([name, tensors.get(tensor)]));
  for (const [name, other] of others) {
    if (own === other || (own && other && same(own, other))) continue;
    throw new InputError(
      `adapters '${first}' and '${name}' replace ${parameter} differently, and a parameter that is replaced has no weighted sum. ` +
        `Say whose to take, for example { head: "${first}" }.`,
    );
  }
  return own;
}

/** @param {SlotTensor} one @param {SlotTensor} other */
const same = (one, other) => one.dims.join() === other.dims.join() && one.data.every((x, i) => x === other.data[i]);

/** Arrays one after the other along an axis, as numpy's `concatenate`. @param {SlotTensor[]} parts @param {number} axis @returns {SlotTensor} */
export function concatenate(parts, axis) {
  const dims = [...(parts[0]?.dims ?? [])];
  dims[axis] = parts.reduce((sum, part) => sum + (part.dims[axis] ?? 0), 0);
  const data = new Float32Array(dims.reduce((product, dim) => product * dim, 1));
  const blocks = dims.slice(0, axis).reduce((product, dim) => product * dim, 1);
  let at = 0;
  for (let block = 0; block < blocks; block++) {
    for (const part of parts) {
      const size = part.data.length / blocks;
      data.set(part.data.subarray(block * size, (block + 1) * size), at);
      at += size;
    }
  }
  return { dims, data };
}
