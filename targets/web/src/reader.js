/** Reading untrusted JSON: each value is checked, and a wrong one named by its key. */

import { ManifestError } from "./errors.js";

/** @typedef {number | string} Dim  A fixed size, or the name of a symbolic one. */

/**
 * Reads values of one JSON object; a wrong one is a {@link ManifestError} that names its key.
 */
export class Reader {
  /** @param {unknown} value @param {string} path @param {string} where */
  constructor(value, path, where) {
    this.path = path;
    this.where = where;
    if (typeof value !== "object" || value === null || Array.isArray(value)) this.fail("", "an object", value);
    this.value = /** @type {Record<string, unknown>} */ (value);
  }

  /** @param {string} key @param {string} expected @param {unknown} found @returns {never} */
  fail(key, expected, found) {
    const at = [this.path, key].filter(Boolean).join(".") || "(top)";
    const shown = found === undefined ? "nothing" : JSON.stringify(found)?.slice(0, 60);
    throw new ManifestError(`${this.where} does not fit the schema: ${at}: expected ${expected}, found ${shown}`);
  }

  /** @param {string} key */
  raw(key) {
    return Object.hasOwn(this.value, key) ? this.value[key] : undefined;
  }

  /** @param {string} key @param {RegExp} [pattern] @returns {string} */
  text(key, pattern) {
    const value = this.raw(key);
    if (typeof value !== "string" || (pattern && !pattern.test(value))) this.fail(key, pattern ? `${pattern}` : "a text", value);
    return value;
  }

  /** @param {string} key @returns {string | null} */
  optionalText(key) {
    return this.raw(key) == null ? null : this.text(key);
  }

  /** A relative path that stays inside the bundle. @param {string} key @returns {string} */
  file(key) {
    const path = this.text(key);
    if (!staysInside(path)) this.fail(key, "a relative path inside the bundle", path);
    return path;
  }

  /** @param {string} key @returns {string | null} */
  optionalFile(key) {
    return this.raw(key) == null ? null : this.file(key);
  }

  /** @param {string} key @param {number} least @returns {number} */
  whole(key, least) {
    const value = this.raw(key);
    if (!Number.isSafeInteger(value) || /** @type {number} */ (value) < least) this.fail(key, `a whole number from ${least} on`, value);
    return /** @type {number} */ (value);
  }

  /** @template {string} T @param {string} key @param {readonly T[]} values @returns {T} */
  oneOf(key, values) {
    const value = this.raw(key);
    if (!values.includes(/** @type {T} */ (value))) this.fail(key, values.join(" or "), value);
    return /** @type {T} */ (value);
  }

  /** @param {string} key @returns {boolean} */
  flag(key) {
    const value = this.raw(key);
    if (typeof value !== "boolean") this.fail(key, "true or false", value);
    return value;
  }

  /** @param {string} key @returns {unknown[]} */
  list(key) {
    const value = this.raw(key) ?? [];
    if (!Array.isArray(value)) this.fail(key, "a list", value);
    return value;
  }

  /** @param {string} key @returns {string[]} */
  texts(key) {
    return this.list(key).map((value) => (typeof value === "string" ? value : this.fail(key, "a list of texts", value)));
  }

  /** @param {string} key @returns {string[] | null} */
  optionalTexts(key) {
    return this.raw(key) == null ? null : this.texts(key);
  }

  /** @param {string} key @returns {Dim[]} */
  shape(key) {
    return this.list(key).map((value) =>
      typeof value === "string" || (Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0)
        ? /** @type {Dim} */ (value)
        : this.fail(key, "a list of sizes", value),
    );
  }

  /** @param {string} key @returns {Reader} */
  at(key) {
    return new Reader(this.raw(key), [this.path, key].filter(Boolean).join("."), this.where);
  }

  /** @template T @param {string} key @param {(reader: Reader) => T} read @returns {T[]} */
  each(key, read) {
    return this.list(key).map((value, i) => read(new Reader(value, `${this.path ? `${this.path}.` : ""}${key}.${i}`, this.where)));
  }

  /** @template T @param {string} key @param {(reader: Reader, name: string) => T} read @returns {Record<string, T>} */
  table(key, read) {
    if (this.raw(key) === undefined) return {};
    const inner = this.at(key);
    // Names come from outside: without a prototype none of them can be one of Object's own.
    return Object.assign(
      Object.create(null),
      Object.fromEntries(Object.keys(inner.value).map((name) => [name, read(inner.at(name), name)])),
    );
  }
}

/** @param {string} path */
export function staysInside(path) {
  return path !== "" && !path.startsWith("/") && !/[\\:%?#]/.test(path) && !path.split("/").includes("..");
}
