/** What one run needs of an adapter: tensors for its slots, and states that stand before the sequence. */

import { checkAdapterFile, readAdapter } from "./adapter.js";
import { InputError } from "./errors.js";
import { factoredSlots, prefixTensors } from "./slots.js";

/**
 * @typedef {import("./adapter.js").SlotTensor} SlotTensor
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./manifest.js").AdapterEntry} AdapterEntry
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 *
 * @typedef {object} Active
 * @property {string | null} name  `a=0.7, b=0.3` for a blend, `null` for the base.
 * @property {number} scale
 * @property {import("./heads.js").Head} head  What its outputs mean.
 * @property {import("./embedding.js").OwnEmbedding | null} [embedding]  How texts are embedded with it; `null`: by the mean.
 * @property {Feeds} feeds  One tensor for every slot.
 * @property {Feeds | null} prefix  `[1, heads, length, head_dim]` by cache input.
 * @property {number} prefixLength  Places of the context that the states take.
 * @property {TextEncoder | null} encoder  Its tokenizer: its own, or the base's.
 * @property {import("./texts.js").OwnText} own  Its own text files.
 */

/**
 * The tensors of an adapter's file, if they are those that the manifest says.
 *
 * @param {Uint8Array} bytes @param {string} name @param {AdapterEntry} entry @param {string} where
 */
export function adapterTensors(bytes, name, entry, where) {
  const file = readAdapter(bytes, where);
  checkAdapterFile(file, name, entry, where);
  return file.tensors;
}

/**
 * An adapter over the base's own tensors.
 *
 * @param {Backend} backend @param {Active} base @param {string} name @param {import("./heads.js").Head} head
 * @param {Map<string, SlotTensor>} tensors
 * @param {Manifest} manifest
 * @returns {Active}
 */
export function makeActive(backend, base, name, head, tensors, manifest) {
  const states = prefixTensors(manifest);
  /** @type {Feeds} */
  const feeds = Object.assign(Object.create(null), base.feeds);
  /** @type {Feeds} */
  const prefix = Object.create(null);
  for (const [tensor, { dims, data }] of tensors) {
    const past = states.get(tensor);
    if (past === undefined) feeds[tensor] = backend.tensor("float32", data, dims);
    else prefix[past.input] = backend.tensor("float32", data, dims);
  }
  const length = Object.values(prefix)[0]?.dims[2] ?? 0;
  const { encoder, own } = base;
  return { name, scale: 1, head, feeds, prefix: length ? prefix : null, prefixLength: length, encoder, own };
}

/**
 * Refuse what is not linear in a weight, with the reason.
 *
 * @param {string} name @param {AdapterEntry} entry @param {"scaled" | "blended"} what
 * @throws {InputError}
 */
export function checkLinear(name, entry, what) {
  if (entry.prefix_length) {
    throw new InputError(
      `adapter '${name}' (${entry.method}) cannot be ${what}: it puts ${entry.prefix_length} states before the sequence, and what ` +
        "attention makes of them is not linear in a weight. Use it alone, as it is.",
    );
  }
  if (!entry.scalable) {
    throw new InputError(
      `adapter '${name}' (${entry.method}) cannot be ${what}: it multiplies outputs or inputs by gains, and gains are not linear in ` +
        "a weight. Use it alone, as it is (scale 1), or train it without them (plain LoRA for DoRA).",
    );
  }
}

/**
 * The adapter with its low-rank part multiplied by `scale`; heads and biases are used as they are.
 *
 * @param {Backend} backend @param {Manifest} manifest @param {Active} active @param {number} scale
 * @returns {Active}
 */
export function scaled(backend, manifest, active, scale) {
  const feeds = Object.assign(Object.create(null), active.feeds);
  for (const { b } of factoredSlots(manifest)) {
    const tensor = feeds[b];
    feeds[b] = backend.tensor("float32", multiplied(tensor.data, scale), tensor.dims);
  }
  return { ...active, scale, feeds };
}

/** In float32, as numpy does. @param {Float32Array} data @param {number} factor */
export function multiplied(data, factor) {
  const single = Math.fround(factor);
  return data.map((x) => x * single);
}
