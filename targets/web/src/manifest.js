/** `edgepeft.json`: what this module reads of it, checked before anything is done with it. */

import { BundleError, ManifestError, UnknownAdapterError } from "./errors.js";
import { fail, fitted } from "./validation.js";

export const SCHEMA_VERSION = 1;
export const MANIFEST_NAME = "edgepeft.json";

/**
 * @typedef {number | string} Dim  A fixed size, or the name of a symbolic one.
 * @typedef {{ sha256: string, bytes: number }} FileEntry
 * @typedef {"single_label_classification" | "multi_label_classification" | "regression"} ProblemType
 * @typedef {"softmax" | "sigmoid" | "identity"} Activation
 * @typedef {{ outputs: Record<string, string>, labels: string[] | null, problem_type: ProblemType | null, activation: Activation | null }} TaskEntry  One task of a base that serves several.
 * @typedef {{ file: string, input_file: string | null, input_unpacked: boolean, decoder_file: string | null, decoder_input_file: string | null, data: string[], slots: "overridable" | "input" | "none", half: boolean, cache_dtype: "float16" | null }} Variant
 * @typedef {{ name: string, dtype: string, shape: Dim[] }} GraphInput
 * @typedef {{ site: string, offset: number, size: number, start: number, step: number, of: number | null }} SlotPart  Some of a site's outputs say which of how many (`of`).
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
 * @typedef {object} Embedding  How texts are embedded: see edgepeft/bundle/embedding.py.
 * @property {string} graph
 * @property {number} dimension
 * @property {string[]} modules
 * @property {Record<string, string>} prompts
 * @property {string | null} default_prompt
 * @property {boolean} include_prompt
 * @property {number | null} max_length
 * @typedef {object} AdapterEntry
 * @property {string} onnx_adapter
 * @property {"fp32" | "fp16" | "int8"} [form]  How its tensors lie in the file; `fp32` in bundles of before.
 * @property {string} method
 * @property {string} base_identity
 * @property {string} slots_hash
 * @property {Record<string, number[]>} tensors  Exactly the tensors the file holds, with their shapes.
 * @property {string[] | null} labels
 * @property {ProblemType | null} problem_type
 * @property {Activation | null} activation
 * @property {string | null} task  Where that is not the bundle's.
 * @property {boolean} scalable
 * @property {boolean} per_row  Whether rows of a batch may differ in it.
 * @property {number} prefix_length  Places of the cache that its states take before the sequence; 0 without any.
 * @property {Embedding | null} embedding  `null`: as the base embeds them.
 * @property {Record<string, { onnx_adapter: string }>} refits  By variant, what takes the place of `onnx_adapter` there.
 * @property {Record<string, string>} text  Text files that take the place of the bundle's for it, as paths by name.
 * @typedef {object} Manifest
 * @property {string} task
 * @property {"swap" | "merge" | "bake"} mode
 * @property {{ identity: string, source: string, fresh: string[] }} base
 * @property {GraphInput[]} inputs
 * @property {GraphInput[]} outputs
 * @property {string[] | null} labels
 * @property {ProblemType | null} problem_type
 * @property {Activation | null} activation
 * @property {Record<string, TaskEntry>} tasks  Those of a base that serves several; empty for one.
 * @property {number | null} max_length
 * @property {Embedding | null} embedding
 * @property {number | null} rope_switch  The longest sequence of a language model whose rotary frequencies depend on it.
 * @property {Slots} slots
 * @property {string | null} slot_defaults
 * @property {Record<string, Variant>} variants
 * @property {Record<string, AdapterEntry>} adapters
 * @property {string | null} merged
 * @property {Record<string, FileEntry>} files
 */

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
  const version = raw?.schema_version;
  if (typeof raw === "object" && raw !== null && !Array.isArray(raw) && version !== SCHEMA_VERSION) {
    throw new ManifestError(
      `${where} has schema_version ${JSON.stringify(version)}; this edgepeft-web reads version ${SCHEMA_VERSION}. ` +
        "Export the bundle again, or install the edgepeft-web of its edgepeft.",
    );
  }
  const manifest = /** @type {Manifest} */ (fitted(raw, where));
  checkNames(manifest, where);
  checkFiles(manifest, where);
  return manifest;
}

/** @param {Manifest} manifest @param {string} where */
function checkNames(manifest, where) {
  for (const name of [...Object.keys(manifest.variants), ...Object.keys(manifest.adapters)]) {
    if (!NAME.test(name)) fail(where, [], `variant and adapter names like ${NAME}`, name);
  }
  if (!Object.keys(manifest.variants).length) fail(where, ["variants"], "at least one variant", {});
}

/** Every file that is named stays inside the bundle, and is listed with its hash. @param {Manifest} manifest @param {string} where */
function checkFiles(manifest, where) {
  /** @type {[string[], string | null][]} */
  const named = [[["slot_defaults"], manifest.slot_defaults]];
  for (const [name, entry] of Object.entries(manifest.variants)) {
    for (const key of /** @type {const} */ (["file", "input_file", "decoder_file", "decoder_input_file"])) named.push([["variants", name, key], entry[key]]);
    for (const file of entry.data) named.push([["variants", name, "data"], file]);
  }
  for (const [name, entry] of Object.entries(manifest.adapters)) {
    named.push([["adapters", name, "onnx_adapter"], entry.onnx_adapter]);
    for (const [file, path] of Object.entries(entry.text)) named.push([["adapters", name, "text", file], path]);
    for (const [variant, refit] of Object.entries(entry.refits)) named.push([["adapters", name, "refits", variant], refit.onnx_adapter]);
  }
  for (const name of Object.keys(manifest.files)) if (!staysInside(name)) fail(where, ["files"], "relative paths inside the bundle", name);
  for (const [path, file] of named) {
    if (file === null) continue;
    if (!staysInside(file)) fail(where, path, "a relative path inside the bundle", file);
    if (!Object.hasOwn(manifest.files, file)) fail(where, ["files"], `an entry for ${file}`, undefined);
  }
}

/**
 * The manifest with each adapter as it runs on a variant: with the tensors that were fitted to it, where there are some.
 *
 * @param {Manifest} manifest
 * @param {string} variant
 * @returns {Manifest}
 */
export function onVariant(manifest, variant) {
  const adapters = Object.entries(manifest.adapters).map(([name, entry]) => {
    const own = Object.hasOwn(entry.refits, variant) ? entry.refits[variant] : undefined;
    return [name, own === undefined ? entry : { ...entry, onnx_adapter: own.onnx_adapter }];
  });
  return { ...manifest, adapters: Object.fromEntries(adapters) };
}

/** @param {string} path */
const staysInside = (path) => path !== "" && !path.startsWith("/") && !/[\\:%?#]/.test(path) && !path.split("/").includes("..");

/** Variants in half precision, in the order in which they are preferred where a GPU computes in it. */
const HALVES = ["q4f16", "fp16"];

/**
 * A variant by name; by default `fp32`, else the first. On a GPU that computes in float16 it is by default the first in half
 * precision that the bundle has; on one that does not, those cannot be opened, and are never the default.
 *
 * @param {Manifest} manifest
 * @param {string} where
 * @param {string | undefined} name
 * @param {{ halves: boolean } | null} [gpu]  The GPU that it is for; none for WebAssembly, which computes halves in float32.
 * @returns {[string, Variant]}
 * @throws {BundleError} Naming the variants there are, or what the GPU lacks.
 */
export function findVariant(manifest, where, name, gpu = null) {
  const names = Object.keys(manifest.variants);
  const whole = names.filter((each) => !manifest.variants[each]?.half);
  const half = gpu?.halves ? HALVES.find((each) => names.includes(each)) : undefined;
  const wanted = name ?? half ?? (names.includes("fp32") ? "fp32" : (whole[0] ?? names[0] ?? ""));
  const found = manifest.variants[wanted];
  if (!names.includes(wanted) || found === undefined) {
    throw new BundleError(`${where} has no variant '${wanted}'; it has: ${names.join(", ")}`);
  }
  if (found.half && gpu !== null && !gpu.halves) {
    throw new BundleError(
      `${where}: variant '${wanted}' computes in float16, and this GPU has no shader-f16. ` +
        (whole.length ? `Open one of: ${whole.join(", ")}` : 'Open the bundle with { device: "wasm" }'),
    );
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
