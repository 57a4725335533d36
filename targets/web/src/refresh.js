/** What changed in a bundle since it was opened: adapters may come and go, the base may not. */

import { BundleError } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 *
 * @typedef {object} Refreshed  Names of adapters.
 * @property {string[]} added
 * @property {string[]} removed
 * @property {string[]} replaced  Others under the same name.
 */

/** What of the manifest an open session stands on. */
const BASE = /** @type {const} */ (["task", "mode", "merged", "base", "inputs", "outputs", "slots", "slot_defaults", "max_length"]);

/**
 * What became of the adapters.
 *
 * @param {Manifest} old @param {Manifest} now @param {string} variant @param {string} where
 * @returns {Refreshed}
 * @throws {BundleError} Where the variant that is open is not what the bundle holds now.
 */
export function compareManifests(old, now, variant, where) {
  const files = Object.values(old.variants[variant] ?? {}).flat();
  const what =
    BASE.find((key) => !same(old[key], now[key])) ??
    (same(old.variants[variant], now.variants[variant]) ? undefined : `variant ${variant}`) ??
    files.find((file) => typeof file === "string" && file in old.files && !same(old.files[file], now.files[file]));
  if (what !== undefined) {
    throw new BundleError(`${where} holds another base than when it was opened (${what} differs), and its session is of the old one. Open the bundle again.`);
  }
  /** @param {Manifest} manifest @param {string} name */
  const state = (manifest, name) => {
    const entry = manifest.adapters[name];
    return [entry, [entry?.onnx_adapter ?? "", entry?.embedding?.graph ?? "", ...Object.values(entry?.text ?? {})].map((file) => manifest.files[file])];
  };
  const names = Object.keys(now.adapters);
  return {
    added: names.filter((name) => !(name in old.adapters)),
    removed: Object.keys(old.adapters).filter((name) => !(name in now.adapters)),
    replaced: names.filter((name) => name in old.adapters && !same(state(old, name), state(now, name))),
  };
}

/** Whether two values of JSON are the same, whatever the order of their keys. @param {unknown} a @param {unknown} b @returns {boolean} */
function same(a, b) {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [mine, theirs] = [Object.entries(a), Object.entries(b)];
  return mine.length === theirs.length && mine.every(([key, value]) => key in b && same(value, /** @type {Record<string, unknown>} */ (b)[key]));
}
