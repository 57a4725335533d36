/** `edgepeft.json`: what this module reads of it, checked before anything is done with it. */

import { AdapterMismatchError, BundleError, ManifestError, UnknownAdapterError } from "./errors.js";

export const SCHEMA_VERSION = 1;
export const MANIFEST_NAME = "edgepeft.json";

/**
 * @typedef {number | string} Dim  A fixed size, or the name of a symbolic one.
 * @typedef {{ sha256: string, bytes: number }} FileEntry
 * @typedef {{ file: string, input_file: string | null, input_unpacked: boolean, data: string[], slots: "overridable" | "input" | "none" }} Variant
 * @typedef {{ name: string, dtype: string, shape: Dim[] }} GraphInput
 * @typedef {{ site: string, offset: number, size: number, start?: number, step?: number, of?: number }} SlotPart
 * @typedef {object} LinearSlot
 * @property {string} name
 * @property {number} in_features
 * @property {number} out_features
 * @property {SlotPart[]} parts
 * @property {string} a
 * @property {string} b
 * @property {string} rank
 * @property {string | null} out_gain
 * @property {string | null} in_gain
 * @typedef {{ in_channels: number, out_channels: number, kernel: number[], a: string, b: string, rank: string, out_gain: string | null }} ConvSlot
 * @typedef {{ rows: number, width: number, a: string, b: string, rank: string }} EmbeddingSlot
 * @typedef {{ parameter: string, tensor: string, shape: Dim[] }} OverrideSlot
 * @typedef {{ linear: LinearSlot[], overrides: OverrideSlot[], convolutions: ConvSlot[], embeddings: EmbeddingSlot[] }} Slots
 * @typedef {object} AdapterEntry
 * @property {string} onnx_adapter
 * @property {string} method
 * @property {string} base_identity
 * @property {string} slots_hash
 * @property {Record<string, number[]>} tensors  Exactly the tensors the file holds, with their shapes.
 * @property {string[] | null} labels
 * @property {boolean} scalable
 * @typedef {object} Manifest
 * @property {string} task
 * @property {"swap" | "merge"} mode
 * @property {{ identity: string, source: string, fresh: string[] }} base
 * @property {GraphInput[]} inputs
 * @property {GraphInput[]} outputs
 * @property {string[] | null} labels
 * @property {number | null} max_length
 * @property {Slots} slots
 * @property {string | null} slot_defaults
 * @property {Record<string, Variant>} variants
 * @property {Record<string, AdapterEntry>} adapters
 * @property {string | null} merged
 * @property {Record<string, FileEntry>} files
 */

const HASH = /^[0-9a-f]{64}$/;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/**
 * Reads values of one JSON object; a wrong one is a {@link ManifestError} that names its key.
 */
class Reader {
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
function staysInside(path) {
  return path !== "" && !path.startsWith("/") && !/[\\:%?#]/.test(path) && !path.split("/").includes("..");
}

/**
 * The manifest in `text`.
 *
 * @param {string} text
 * @param {string} where  For messages: where the text is from.
 * @returns {Manifest}
 * @throws {ManifestError} Where it is not JSON, of another schema version, or a key is wrong (named).
 */
export function parseManifest(text, where) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new ManifestError(`${where} is not JSON (${/** @type {Error} */ (error).message}); export the bundle again`, { cause: error });
  }
  const top = new Reader(raw, "", where);
  const version = top.raw("schema_version");
  if (version !== SCHEMA_VERSION) {
    throw new ManifestError(
      `${where} has schema_version ${JSON.stringify(version)}; this edgepeft-web reads version ${SCHEMA_VERSION}. ` +
        "Export the bundle again, or install the edgepeft-web of its edgepeft.",
    );
  }
  /** @type {Manifest} */
  const manifest = {
    task: top.text("task"),
    mode: top.oneOf("mode", /** @type {const} */ (["swap", "merge"])),
    base: ((base) => ({ identity: base.text("identity", HASH), source: base.text("source"), fresh: base.texts("fresh") }))(top.at("base")),
    inputs: top.each("inputs", graphInput),
    outputs: top.each("outputs", graphInput),
    labels: top.optionalTexts("labels"),
    max_length: top.raw("max_length") == null ? null : top.whole("max_length", 1),
    slots: ((slots) => ({
      linear: slots.each("linear", linearSlot),
      overrides: slots.each("overrides", overrideSlot),
      convolutions: slots.each("convolutions", convSlot),
      embeddings: slots.each("embeddings", embeddingSlot),
    }))(top.at("slots")),
    slot_defaults: top.optionalFile("slot_defaults"),
    variants: top.table("variants", variant),
    adapters: top.table("adapters", adapterEntry),
    merged: top.optionalText("merged"),
    files: top.table("files", (file, name) => {
      if (!staysInside(name)) top.fail("files", "relative paths inside the bundle", name);
      return { sha256: file.text("sha256", HASH), bytes: file.whole("bytes", 0) };
    }),
  };
  const named = [
    ...Object.values(manifest.variants).flatMap((v) => [v.file, v.input_file, ...v.data]),
    ...Object.values(manifest.adapters).map((a) => a.onnx_adapter),
    manifest.slot_defaults,
  ];
  const unlisted = named.find((file) => file !== null && !Object.hasOwn(manifest.files, file));
  if (unlisted) top.fail("files", `an entry for ${unlisted}`, undefined);
  for (const name of [...Object.keys(manifest.variants), ...Object.keys(manifest.adapters)]) {
    if (!NAME.test(name)) top.fail("", `variant and adapter names like ${NAME}`, name);
  }
  if (!Object.keys(manifest.variants).length) top.fail("variants", "at least one variant", {});
  return manifest;
}

/** @param {Reader} value @returns {GraphInput} */
const graphInput = (value) => ({ name: value.text("name"), dtype: value.text("dtype"), shape: value.shape("shape") });

/** @param {Reader} value @returns {Variant} */
const variant = (value) => ({
  file: value.file("file"),
  input_file: value.optionalFile("input_file"),
  input_unpacked: value.raw("input_unpacked") === undefined ? false : value.flag("input_unpacked"),
  data: value.list("data").map((file) => (typeof file === "string" && staysInside(file) ? file : value.fail("data", "paths inside the bundle", file))),
  slots: value.raw("slots") === undefined ? "overridable" : value.oneOf("slots", /** @type {const} */ (["overridable", "input", "none"])),
});

/** @param {Reader} value @returns {LinearSlot} */
const linearSlot = (value) => ({
  name: value.text("name"),
  in_features: value.whole("in_features", 1),
  out_features: value.whole("out_features", 1),
  parts: value.each("parts", slotPart),
  a: value.text("a"),
  b: value.text("b"),
  rank: value.text("rank"),
  out_gain: value.optionalText("out_gain"),
  in_gain: value.optionalText("in_gain"),
});

/** Some of a site's outputs say which (`of` is there); a whole site's say nothing. @param {Reader} value @returns {SlotPart} */
const slotPart = (value) => ({
  site: value.text("site"),
  offset: value.whole("offset", 0),
  size: value.whole("size", 1),
  ...(value.raw("of") == null ? {} : { start: value.whole("start", 0), step: value.whole("step", 1), of: value.whole("of", 1) }),
});

/** @param {Reader} value @returns {ConvSlot} */
const convSlot = (value) => ({
  in_channels: value.whole("in_channels", 1),
  out_channels: value.whole("out_channels", 1),
  kernel: value.shape("kernel").map((size) => (typeof size === "number" ? size : value.fail("kernel", "numbers", size))),
  a: value.text("a"),
  b: value.text("b"),
  rank: value.text("rank"),
  out_gain: value.optionalText("out_gain"),
});

/** @param {Reader} value @returns {EmbeddingSlot} */
const embeddingSlot = (value) => ({
  rows: value.whole("rows", 1),
  width: value.whole("width", 1),
  a: value.text("a"),
  b: value.text("b"),
  rank: value.text("rank"),
});

/** @param {Reader} value @returns {OverrideSlot} */
const overrideSlot = (value) => ({ parameter: value.text("parameter"), tensor: value.text("tensor"), shape: value.shape("shape") });

/** @param {Reader} value @returns {AdapterEntry} */
const adapterEntry = (value) => {
  const tensors = value.at("tensors");
  return {
    onnx_adapter: value.file("onnx_adapter"),
    method: value.text("method"),
    base_identity: value.text("base_identity", HASH),
    slots_hash: value.text("slots_hash", HASH),
    tensors: Object.assign(
      Object.create(null),
      Object.fromEntries(
        Object.keys(tensors.value).map((name) => [name, tensors.shape(name).map((d) => (typeof d === "number" ? d : tensors.fail(name, "numbers", d)))]),
      ),
    ),
    labels: value.optionalTexts("labels"),
    scalable: value.raw("scalable") === undefined ? true : value.flag("scalable"),
  };
};

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
 * Refuse adapters whose contract is not with this base: identity, slot schema, tensor names and shapes.
 *
 * @param {Manifest} manifest
 * @param {string} where
 * @param {string} slotsHash  The hash of the manifest's own slot table.
 * @throws {AdapterMismatchError}
 */
export function checkAdapters(manifest, where, slotsHash) {
  const shapes = slotTensors(manifest);
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
    for (const [tensor, shape] of Object.entries(entry.tensors)) {
      const expected = shapes.get(tensor);
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
  const parts = Object.fromEntries(manifest.slots.linear.map((slot) => [slot.name, slot.parts]));
  return pythonJson({ parts, tensors });
}

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

/**
 * A variant by name; by default `fp32`, else the first.
 *
 * @param {Manifest} manifest
 * @param {string} where
 * @param {string | undefined} name
 * @returns {[string, Variant]}
 * @throws {BundleError} Naming the variants there are.
 */
export function findVariant(manifest, where, name) {
  const names = Object.keys(manifest.variants);
  const wanted = name ?? (names.includes("fp32") ? "fp32" : names[0] ?? "");
  const found = manifest.variants[wanted];
  if (!names.includes(wanted) || found === undefined) {
    throw new BundleError(`${where} has no variant '${wanted}'; it has: ${names.join(", ")}`);
  }
  return [wanted, found];
}

/**
 * An adapter by name.
 *
 * @param {Manifest} manifest
 * @param {string} where
 * @param {string} name
 * @returns {AdapterEntry}
 * @throws {UnknownAdapterError} Naming the adapters there are.
 */
export function findAdapter(manifest, where, name) {
  const found = manifest.adapters[name];
  if (found === undefined) {
    const names = Object.keys(manifest.adapters).join(", ") || "none";
    throw new UnknownAdapterError(`${where} has no adapter '${name}'; it has: ${names}`);
  }
  return found;
}
