/** Untrusted JSON held against the manifest's schema; what does not fit is named by its key. */

import { Validator } from "@cfworker/json-schema";

import { ManifestError } from "./errors.js";
import { SCHEMA } from "./schema.js";

/**
 * @typedef {{ [key: string]: any }} Node  A schema.
 * @typedef {import("@cfworker/json-schema").OutputUnit} OutputUnit
 */

const validator = new Validator(SCHEMA, "2020-12");
/** Keywords that only say that something below them failed. */
const OUTER = new Set(["$ref", "properties", "additionalProperties", "items", "anyOf"]);
/** @type {Record<string, string>} */
const KINDS = {
  string: "a text",
  integer: "a whole number",
  number: "a number",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  null: "nothing",
};

/**
 * `raw` as the schema says, with its defaults where a key is left out.
 *
 * @param {unknown} raw @param {string} where  For messages: where it is from.
 * @returns {any} Objects whose names come from outside have no prototype: none of them can be one of Object's own.
 * @throws {ManifestError} Naming the first key that does not fit, what was expected and what was found.
 */
export function fitted(raw, where) {
  let found;
  try {
    found = validator.validate(raw);
  } catch (error) {
    // A key that is not text (half of a surrogate pair) cannot be written as a path.
    throw new ManifestError(`${where} does not fit the schema: ${/** @type {Error} */ (error).message}; export the bundle again`, { cause: error });
  }
  if (!found.valid) misfit(raw, found.errors, where);
  return completed(raw, SCHEMA, [], where);
}

/**
 * @param {string} where @param {string[]} path @param {string} expected @param {unknown} found
 * @returns {never}
 */
export function fail(where, path, expected, found) {
  const shown = found === undefined ? "nothing" : JSON.stringify(found)?.slice(0, 60);
  throw new ManifestError(`${where} does not fit the schema: ${path.join(".") || "(top)"}: expected ${expected}, found ${shown}`);
}

/** @param {Node} node @returns {Node} */
const followed = (node) => (node.$ref === undefined ? node : SCHEMA.$defs[node.$ref.slice("#/$defs/".length)]);

/** @param {string} pointer @returns {string[]} */
const keys = (pointer) =>
  pointer
    .split("/")
    .slice(1)
    .map((key) => decodeURIComponent(key).replaceAll("~1", "/").replaceAll("~0", "~"));

/** @param {unknown} raw @param {OutputUnit[]} errors @param {string} where @returns {never} */
function misfit(raw, errors, where) {
  // Where several shapes are allowed, the one that fitted furthest was meant.
  const depth = (/** @type {OutputUnit} */ unit) => keys(unit.instanceLocation).length;
  const [first] = errors.filter(({ keyword }) => !OUTER.has(keyword)).sort((a, b) => depth(b) - depth(a));
  const { keyword, keywordLocation, instanceLocation, error } = /** @type {OutputUnit} */ (first);
  const path = keys(instanceLocation);
  const found = path.reduce((value, key) => /** @type {any} */ (value)[key], raw);
  if (keyword === "false") fail(where, path, "no such key", found);
  const node = followed(
    keys(keywordLocation)
      .slice(0, -1)
      .reduce((each, key) => (key === "$ref" ? followed(each) : each[key]), SCHEMA),
  );
  if (keyword === "required") {
    const missing = node.required.find((/** @type {string} */ key) => !Object.hasOwn(/** @type {object} */ (found), key));
    fail(where, [...path, missing], described(node.properties[missing]), undefined);
  }
  fail(where, path, expectation(keyword, node, error), found);
}

/** @param {string} keyword @param {Node} node @param {string} error */
function expectation(keyword, node, error) {
  if (keyword === "minimum") return `${KINDS[node.type]} from ${node.minimum} on`;
  if (keyword === "maximum") return `${KINDS[node.type]} up to ${node.maximum}`;
  if (keyword === "exclusiveMinimum") return `${KINDS[node.type]} above ${node.exclusiveMinimum}`;
  if (keyword === "exclusiveMaximum") return `${KINDS[node.type]} below ${node.exclusiveMaximum}`;
  return keyword === "type" || keyword === "enum" || keyword === "pattern" ? described(node) : `another value (${error})`;
}

/** What a schema takes, in words. @param {Node} node @returns {string} */
function described(node) {
  const { type, enum: values, pattern } = followed(node);
  if (values !== undefined) return values.join(" or ");
  return pattern === undefined ? (KINDS[type] ?? "a value") : `a text like ${pattern}`;
}

/** What stands for a key that is left out. @param {Node} node */
const absent = (node) => (node.default === undefined && node.type === "object" ? Object.create(null) : structuredClone(node.default));

/**
 * A copy of what fits, with defaults. Whole numbers are also held to what a double counts exactly, and sizes have no sign.
 *
 * @param {any} value @param {Node} node @param {string[]} path @param {string} where @returns {any}
 */
function completed(value, node, path, where) {
  const { properties, additionalProperties, items, anyOf, type } = followed(node);
  if (anyOf !== undefined) {
    const kind = value === null ? "null" : Array.isArray(value) ? "array" : typeof value === "number" ? "integer" : typeof value;
    return completed(value, anyOf.find((/** @type {Node} */ each) => followed(each).type === kind) ?? {}, path, where);
  }
  if (type === "integer" && !(Number.isSafeInteger(value) && value >= 0)) fail(where, path, "a whole number from 0 on", value);
  if (items !== undefined) return value.map((/** @type {any} */ each, /** @type {number} */ i) => completed(each, items, [...path, `${i}`], where));
  if (properties !== undefined) {
    return Object.fromEntries(
      Object.entries(/** @type {Record<string, Node>} */ (properties)).map(([key, inner]) => [
        key,
        Object.hasOwn(value, key) ? completed(value[key], inner, [...path, key], where) : absent(inner),
      ]),
    );
  }
  if (typeof additionalProperties !== "object") return value;
  const table = Object.create(null);
  for (const key of Object.keys(value)) table[key] = completed(value[key], additionalProperties, [...path, key], where);
  return table;
}
