/** A batch in which each row has its own adapter, in one run over the same graph. */

import { InputError } from "./errors.js";
import { headOf, isLabelAxis } from "./heads.js";
import { findAdapter } from "./manifest.js";

/**
 * @typedef {import("./adapter.js").SlotTensor} SlotTensor
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {Map<string, SlotTensor>} Tensors
 */

/**
 * Refuse adapters that cannot share a batch.
 *
 * @param {Manifest} manifest @param {string} where @param {(string | null)[]} rows
 * @returns {string[]} The adapters there are among them.
 * @throws {InputError}
 */
export function checkMixed(manifest, where, rows) {
  const names = [...new Set(rows)].filter((name) => name !== null);
  const entries = names.map((name) => /** @type {const} */ ([name, findAdapter(manifest, where, name)]));
  for (const [name, { method, prefix_length, per_row }] of entries) {
    if (prefix_length) {
      throw new InputError(
        `adapter '${name}' (${method}) puts states before the sequence, so its rows are longer than those of others; run them by themselves with use()`,
      );
    }
    if (!per_row) {
      throw new InputError(
        `adapter '${name}' (${method}) edits what cannot differ by row (a convolution, an embedding, a norm or a bias inside a fused ` +
          "operator); run its rows by themselves with use()",
      );
    }
  }
  const tasks = new Set(rows.map((name) => headOf(manifest, name).task));
  if (tasks.size > 1) {
    throw new InputError(
      `the adapters of a batch are for ${[...tasks].join(", ")}, whose outputs differ in shape; run the rows of each task in a batch of their own`,
    );
  }
  return names;
}

/**
 * Slot tensors of a batch whose row `i` uses adapter `rows[i]` (`null`: the base): ranks are padded with zeros to the widest,
 * gains with ones and heads with zeros, so every row computes what it would alone.
 *
 * @param {Manifest} manifest @param {(string | null)[]} rows @param {Map<string, Tensors>} loaded @param {number[]} counts  The rows' labels.
 * @returns {Tensors}
 * @throws {InputError} Where some rows replace a parameter and others keep the base's.
 */
export function mixedTensors(manifest, rows, loaded, counts) {
  const gains = new Set(manifest.slots.linear.flatMap(({ in_gain, out_gain }) => [in_gain, out_gain]));
  const replaced = new Map(manifest.slots.overrides.map((slot) => [slot.tensor, slot]));
  /** @type {Tensors} */
  const mixed = new Map();
  for (const tensor of new Set([...loaded.values()].flatMap((tensors) => [...tensors.keys()]))) {
    const mine = rows.map((row) => (row === null ? undefined : loaded.get(row)?.get(tensor)));
    const present = mine.filter((each) => each !== undefined);
    const override = replaced.get(tensor);
    if (override !== undefined && present.length < rows.length && !manifest.base.fresh.includes(override.parameter)) {
      throw new InputError(`some rows replace ${override.parameter} and others keep the base's; run them in batches of their own`);
    }
    const [high, wide] = [1, 2].map((axis) => Math.max(...present.map(({ dims }) => dims[axis] ?? 0)));
    const isHead = override !== undefined && isLabelAxis(override.shape.at(-1));
    if (isHead) checkHeads(rows, mine, counts);
    const across = isHead ? Math.max(wide ?? 0, ...counts) : (wide ?? 0);
    const size = [rows.length, high ?? 0, across];
    const data = new Float32Array(size.reduce((product, dim) => product * dim, 1)).fill(gains.has(tensor) ? 1 : 0);
    mine.forEach((each, row) => {
      const [, height = 0, width = 0] = each?.dims ?? [];
      for (let i = 0; i < height; i++) {
        data.set(/** @type {SlotTensor} */ (each).data.subarray(i * width, (i + 1) * width), (row * (high ?? 0) + i) * across);
      }
    });
    mixed.set(tensor, { dims: size, data });
  }
  return mixed;
}

/** @param {(string | null)[]} rows @param {(SlotTensor | undefined)[]} mine @param {number[]} counts */
function checkHeads(rows, mine, counts) {
  for (const [row, name] of rows.entries()) {
    const width = mine[row]?.dims.at(-1);
    if (width !== undefined && width !== counts[row]) throw new InputError(`adapter '${name}' has a head of ${width} outputs but ${counts[row]} labels`);
  }
}

/**
 * Set logits behind a row's own labels to minus infinity: no probability, never the best.
 *
 * @param {{ data: Float32Array, dims: readonly number[] }} logits  `[rows, …, labels]`, changed in place. @param {number[]} counts
 */
export function hidePadding(logits, counts) {
  const width = logits.dims.at(-1) ?? 1;
  const each = logits.data.length / Math.max(1, counts.length);
  for (const [row, count] of counts.entries()) {
    for (let at = row * each; count && at < (row + 1) * each; at += width) logits.data.fill(Number.NEGATIVE_INFINITY, at + count, at + width);
  }
}
