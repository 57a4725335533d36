/** `edgepeft.json`: what this module reads of it, checked before anything is done with it. */

import { BundleError, ManifestError, UnknownAdapterError } from "./errors.js";
import { Reader, staysInside } from "./reader.js";

export const SCHEMA_VERSION = 1;
export const MANIFEST_NAME = "edgepeft.json";

/**
 * @typedef {import("./reader.js").Dim} Dim
 * @typedef {{ sha256: string, bytes: number }} FileEntry
 * @typedef {{ file: string, input_file: string | null, input_unpacked: boolean, decoder_file: string | null, decoder_input_file: string | null, data: string[], slots: "overridable" | "input" | "none" }} Variant
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
 * @property {boolean} per_row  Whether rows of a batch may differ in it.
 * @property {number} prefix_length  Places of the cache that its states take before the sequence; 0 without any.
 * @typedef {object} Manifest
 * @property {string} task
 * @property {"swap" | "merge" | "bake"} mode
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
    mode: top.oneOf("mode", /** @type {const} */ (["swap", "merge", "bake"])),
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
    ...Object.values(manifest.variants).flatMap((v) => [v.file, v.input_file, v.decoder_file, v.decoder_input_file, ...v.data]),
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
  decoder_file: value.optionalFile("decoder_file"),
  decoder_input_file: value.optionalFile("decoder_input_file"),
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
    per_row: value.raw("per_row") === undefined ? true : value.flag("per_row"),
    prefix_length: value.raw("prefix_length") === undefined ? 0 : value.whole("prefix_length", 0),
  };
};

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
