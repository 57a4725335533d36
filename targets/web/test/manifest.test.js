import assert from "node:assert/strict";
import { test } from "node:test";

import { AdapterMismatchError, BundleError, ManifestError, UnknownAdapterError } from "../src/errors.js";
import { findAdapter, findVariant, onVariant, parseManifest } from "../src/manifest.js";
import { checkAdapters, slotSignature, slotTensors } from "../src/slots.js";

const HASH = "ab".repeat(32);

/** A manifest with one of everything. */
const good = () => ({
  schema_version: 1,
  task: "text-classification",
  mode: "swap",
  base: { source: "x", architecture: "X", model_type: "x", captured_by: "traced", identity: HASH, parameters: 9 },
  inputs: [{ name: "input_ids", dtype: "int64", shape: ["batch", "sequence"] }],
  outputs: [{ name: "logits", dtype: "float", shape: ["batch", "labels"] }],
  labels: ["a", "b"],
  max_length: 8,
  slots: {
    linear: [
      {
        name: "ü.query",
        in_features: 4,
        out_features: 6,
        parts: [{ site: "ü.query", offset: 0, size: 6 }],
        a: "A",
        b: "B",
        rank: "r",
        out_gain: "G",
        in_gain: null,
        weight: "w",
        transposed: false,
        per_row: true,
      },
    ],
    overrides: [{ parameter: "head.weight", tensor: "H", shape: ["adapter_batch", 4, "labels"], layout: "matmul", per_row: true }],
  },
  slot_defaults: null,
  variants: { fp32: { file: "onnx/model.onnx", input_file: null, data: [], slots: "overridable", recipe: "fp32", quantized_share: 0 } },
  adapters: {
    one: {
      onnx_adapter: "adapters/one.onnx_adapter",
      onnx: "adapters/one.onnx",
      method: "LORA",
      source: "y",
      base_identity: HASH,
      slots_hash: HASH,
      tensors: { A: [1, 4, 2], B: [1, 2, 6] },
      ranks: {},
      labels: null,
      bytes: 3,
    },
  },
  merged: null,
  files: { "onnx/model.onnx": { sha256: HASH, bytes: 1 }, "adapters/one.onnx_adapter": { sha256: HASH, bytes: 1 } },
});

/** @param {(manifest: any) => void} change */
const changed = (change) => {
  const manifest = good();
  change(manifest);
  return JSON.stringify(manifest);
};

test("a good manifest is read", () => {
  const manifest = parseManifest(JSON.stringify(good()), "here");
  assert.deepEqual([...slotTensors(manifest).keys()], ["A", "B", "G", "H"]);
  assert.equal(findVariant(manifest, "here", undefined)[0], "fp32");
  checkAdapters(manifest, "here", HASH);
});

for (const [what, change, words] of /** @type {[string, (m: any) => void, RegExp][]} */ ([
  ["another schema version", (m) => (m.schema_version = 2), /schema_version 2; this edgepeft-web reads version 1/],
  ["no task", (m) => delete m.task, /task: expected a text, found nothing/],
  ["a wrong mode", (m) => (m.mode = "other"), /mode: expected swap or merge or bake, found "other"/],
  ["an identity that is no hash", (m) => (m.base.identity = "xyz"), /base\.identity/],
  ["no variants", (m) => (m.variants = {}), /at least one variant/],
  ["a variant name that is no name", (m) => (m.variants["../x"] = m.variants.fp32), /variant and adapter names/],
  ["a file outside", (m) => (m.variants.fp32.file = "../model.onnx"), /variants\.fp32\.file: expected a relative path inside the bundle/],
  ["an absolute file", (m) => (m.variants.fp32.file = "/etc/passwd"), /relative path inside/],
  ["another site's file", (m) => (m.variants.fp32.data = ["https://example.org/x"]), /data/],
  ["a listed file outside", (m) => (m.files["../x"] = { sha256: HASH, bytes: 1 }), /files: expected relative paths/],
  ["a file that is not listed", (m) => (m.variants.fp32.file = "onnx/other.onnx"), /an entry for onnx\/other\.onnx/],
  ["an adapter file that is not listed", (m) => delete m.files["adapters/one.onnx_adapter"], /an entry for adapters\/one/],
  ["a size below zero", (m) => (m.files["onnx/model.onnx"].bytes = -1), /bytes: expected a whole number/],
  ["a symbolic adapter shape", (m) => (m.adapters.one.tensors.A = [1, "r"]), /adapters\.one\.tensors\.A/],
  ["labels that are no texts", (m) => (m.labels = [1]), /labels\.0: expected a text, found 1/],
  ["no schema version", (m) => delete m.schema_version, /schema_version undefined/],
  ["a key that nobody knows", (m) => (m.variants.fp32.extra = 1), /variants\.fp32\.extra: expected no such key, found 1/],
  ["a base that is a list", (m) => (m.base = []), /base: expected an object, found \[\]/],
  ["an adapter without its hash", (m) => delete m.adapters.one.slots_hash, /adapters\.one\.slots_hash: expected a text like .*, found nothing/],
  ["half a token", (m) => (m.max_length = 1.5), /max_length: expected a whole number, found 1\.5/],
  ["no token", (m) => (m.max_length = 0), /max_length: expected a whole number above 0, found 0/],
  ["a size that no double counts", (m) => (m.files["onnx/model.onnx"].bytes = 2 ** 60), /bytes: expected a whole number below 9007199254740992, found/],
  ["a dimension below zero", (m) => (m.slots.overrides[0].shape = [-1]), /slots\.overrides\.0\.shape\.0: expected a whole number from 0 on, found -1/],
  ["a slot of no width", (m) => (m.slots.linear[0].in_features = 0), /in_features: expected a whole number above 0, found 0/],
  ["more than all weights quantized", (m) => (m.variants.fp32.quantized_share = 2), /quantized_share: expected a number up to 1, found 2/],
  ["a slot without parts", (m) => (m.slots.linear[0].parts = []), /slots\.linear\.0\.parts: expected another value/],
  ["half a character as a name", (m) => (m.files["\ud800"] = { sha256: HASH, bytes: 1.5 }), /does not fit the schema/],
  ["a name that is a path", (m) => (m.files["a/~b%"] = { sha256: HASH, bytes: "3" }), /files\.a\/~b%\.bytes: expected a whole number, found "3"/],
  ["a prototype", (m) => Object.defineProperty(m.adapters, "__proto__", { value: 3, enumerable: true }), /adapters\.__proto__: expected an object, found 3/],
  ["a slot that is no object", (m) => (m.slots.linear = [3]), /slots\.linear\.0: expected an object, found 3/],
])) {
  test(`${what} is refused`, () => {
    assert.throws(
      () => parseManifest(changed(change), "here"),
      (error) => error instanceof ManifestError && words.test(error.message) && error.message.startsWith("here"),
    );
  });
}

test("what is left out has its default", () => {
  const manifest = parseManifest(
    changed((m) => {
      for (const key of ["labels", "max_length", "slot_defaults", "merged", "adapters"]) delete m[key];
    }),
    "here",
  );
  const { labels, max_length, slot_defaults, merged, adapters, slots, base } = manifest;
  assert.deepEqual([labels, max_length, slot_defaults, merged, Object.keys(adapters)], [null, null, null, null, []]);
  assert.deepEqual([slots.convolutions, slots.embeddings, base.fresh], [[], [], []]);
  assert.deepEqual(slots.linear[0]?.parts, [{ site: "ü.query", offset: 0, size: 6, start: 0, step: 1, of: null }]);
  const { scalable, per_row, prefix_length } = parseManifest(JSON.stringify(good()), "here").adapters.one ?? {};
  assert.deepEqual([scalable, per_row, prefix_length], [true, true, 0]);
});

test("a name of Object's own is only a name", () => {
  const tensors = '{"__proto__": [1], "constructor": [2, 3]}';
  const text = JSON.stringify(good()).replace('"tensors":{"A":[1,4,2],"B":[1,2,6]}', `"tensors":${tensors}`);
  const found = parseManifest(text, "here").adapters.one?.tensors ?? {};
  assert.deepEqual(Object.entries(found), [
    ["__proto__", [1]],
    ["constructor", [2, 3]],
  ]);
  assert.equal(Object.getPrototypeOf(found), null);
});

for (const text of ["", "{", "[]", "3", "null", '"x"', "[".repeat(200_000)]) {
  test(`${JSON.stringify(text).slice(0, 20)} is not a manifest`, () => {
    assert.throws(() => parseManifest(text, "here"), ManifestError);
  });
}

test("unknown names list those there are", () => {
  const manifest = parseManifest(JSON.stringify(good()), "here");
  assert.throws(
    () => findVariant(manifest, "here", "q4"),
    (e) => e instanceof BundleError && e.message === "here has no variant 'q4'; it has: fp32",
  );
  assert.throws(
    () => findAdapter(manifest, "here", "two"),
    (e) => e instanceof UnknownAdapterError && e.message === "here has no adapter 'two'; it has: one",
  );
});

for (const name of ["constructor", "__proto__", "toString"]) {
  test(`${name} is no adapter`, () => {
    assert.throws(() => findAdapter(parseManifest(JSON.stringify(good()), "here"), "here", name), UnknownAdapterError);
  });
}

for (const [what, change, words] of /** @type {[string, (m: any) => void, RegExp][]} */ ([
  ["another base", (m) => (m.adapters.one.base_identity = "cd".repeat(32)), /'one' was made for base identity cdcd.*this base has abab/],
  ["other slots", (m) => (m.adapters.one.slots_hash = "cd".repeat(32)), /slot schema cdcd/],
  ["a tensor that is no slot", (m) => (m.adapters.one.tensors.X = [1]), /fills X, which is not a slot/],
  ["a wrong shape", (m) => (m.adapters.one.tensors.A = [1, 5, 2]), /A has shape \[1,5,2\], the slot takes \[adapter_batch,4,r\]/],
])) {
  test(`an adapter of ${what} is refused`, () => {
    const manifest = parseManifest(changed(change), "here");
    assert.throws(
      () => checkAdapters(manifest, "here", HASH),
      (error) => error instanceof AdapterMismatchError && words.test(error.message),
    );
  });
}

test("the slot signature is Python's JSON, byte for byte", () => {
  const manifest = parseManifest(JSON.stringify(good()), "here");
  assert.equal(
    slotSignature(manifest),
    '{"parts": {"\\u00fc.query": [{"offset": 0, "site": "\\u00fc.query", "size": 6}]}, "tensors": {"A": ["adapter_batch", 4, "r"], ' +
      '"B": ["adapter_batch", "r", 6], "G": ["adapter_batch", 1, 6], "H": ["adapter_batch", 4, "labels"]}}',
  );
});

test("the slot signature names the outputs of a site that stand apart", () => {
  const text = changed((m) => (m.slots.linear[0].parts = [{ site: "x", offset: 0, size: 6, start: 1, step: 2, of: 12 }]));
  assert.match(
    slotSignature(parseManifest(text, "here")),
    /^\{"parts": \{"\\u00fc.query": \[\{"of": 12, "offset": 0, "site": "x", "size": 6, "start": 1, "step": 2\}\]\}, /,
  );
});

test("a GPU that computes in float16 gets the variant in half precision, others never do", () => {
  const entry = (/** @type {string} */ file, half = false) => ({ file, recipe: "x", quantized_share: 0, data: [], half, cache_dtype: half ? "float16" : null });
  const variants = { fp32: entry("a"), fp16: entry("b", true), q4f16: entry("c", true), q4: entry("d") };
  const manifest = /** @type {any} */ ({ variants });
  assert.equal(findVariant(manifest, "here", undefined, { halves: true })[0], "q4f16");
  assert.equal(findVariant(manifest, "here", "q4", { halves: true })[0], "q4", "what is asked for");
  assert.equal(findVariant(manifest, "here", undefined, { halves: false })[0], "fp32");
  assert.equal(findVariant(manifest, "here", undefined, null)[0], "fp32");
  assert.equal(findVariant(manifest, "here", "fp16", null)[0], "fp16", "WebAssembly widens it");
  assert.throws(() => findVariant(manifest, "here", "fp16", { halves: false }), /'fp16' computes in float16, and this GPU has no shader-f16.*fp32, q4$/);
  const halves = /** @type {any} */ ({ variants: { q4f16: variants.q4f16, q4: variants.q4 } });
  assert.equal(findVariant(halves, "here", undefined, { halves: false })[0], "q4");
});

test("an adapter that was refitted to a variant runs there with its own file", () => {
  const refit = { onnx_adapter: "adapters/one/q4.onnx_adapter", onnx: "adapters/one/q4.onnx", bytes: 3, loss: [0.2, 0.1] };
  const raw = good();
  /** @type {any} */ (raw.adapters.one).refits = { q4: refit };
  assert.throws(() => parseManifest(JSON.stringify(raw), "here"), /an entry for adapters\/one\/q4.onnx_adapter/);
  /** @type {any} */ (raw.files)["adapters/one/q4.onnx_adapter"] = { sha256: HASH, bytes: 1 };
  const manifest = parseManifest(JSON.stringify(raw), "here");
  assert.equal(onVariant(manifest, "fp32").adapters.one?.onnx_adapter, "adapters/one.onnx_adapter");
  assert.equal(onVariant(manifest, "q4").adapters.one?.onnx_adapter, "adapters/one/q4.onnx_adapter");
  assert.equal(manifest.adapters.one?.onnx_adapter, "adapters/one.onnx_adapter");
});
