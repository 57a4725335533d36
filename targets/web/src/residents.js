/** The adapters that a runtime holds in memory: fetched at their first use, and no more of them than it was told. */

import { InputError } from "./errors.js";

/** Adapters that stay in memory where `openBundle` is not told how many. */
export const RESIDENT = 8;

/** @param {number} limit @returns {number} */
export function checkResident(limit) {
  if (!Number.isInteger(limit) || limit < 1) throw new InputError(`resident must be a whole number of adapters from 1 on, found ${limit}`);
  return limit;
}

/**
 * Holds the `limit` last used values by name. One that is let go lives as long as something else holds it.
 *
 * @template T
 */
export class Residents {
  /** The one used longest ago first. @type {Map<string, T>} */ #held = new Map();
  #limit;

  /** @param {number} limit */
  constructor(limit) {
    this.#limit = checkResident(limit);
  }

  /** The one used longest ago first. @returns {string[]} */
  get names() {
    return [...this.#held.keys()];
  }

  /** A value, which counts as used now. @param {string} name @returns {T | undefined} */
  get(name) {
    const found = this.#held.get(name);
    if (found !== undefined) this.set(name, found);
    return found;
  }

  /** @param {string} name @param {T} value */
  set(name, value) {
    this.#held.delete(name);
    this.#held.set(name, value);
    for (const oldest of this.#held.keys()) {
      if (this.#held.size <= this.#limit) break;
      this.#held.delete(oldest);
    }
  }

  /** @param {string} name */
  delete(name) {
    this.#held.delete(name);
  }
}
