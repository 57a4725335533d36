/** Adapters in memory: how many, which goes first, and what changed in a manifest that is read again. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { BundleError, InputError } from "../src/errors.js";
import { compareManifests } from "../src/refresh.js";
import { Residents } from "../src/residents.js";

describe("residents", () => {
  test("the one used longest ago goes first", () => {
    const held = new Residents(2);
    held.set("a", 1);
    held.set("b", 2);
    assert.equal(held.get("a"), 1);
    held.set("c", 3);
    assert.deepEqual(held.names, ["a", "c"]);
    assert.equal(held.get("b"), undefined);
    held.delete("a");
    assert.deepEqual(held.names, ["c"]);
  });

  for (const limit of [0, -1, 1.5, NaN, "8"]) {
    test(`${limit} is no bound`, () => {
      assert.throws(
        () => new Residents(/** @type {any} */ (limit)),
        (e) => e instanceof InputError && /resident must be a whole number/.test(e.message),
      );
    });
  }
});

/** @param {Record<string, unknown>} [more] @returns {any} */
const manifest = (more = {}) => ({
  task: "text-generation",
  mode: "swap",
  base: { identity: "0" },
  inputs: [{ name: "input_ids", shape: ["batch", "sequence"] }],
  max_length: 9,
  variants: { fp32: { file: "m.onnx", data: ["m.data"], input_file: null }, int8: { file: "q.onnx", data: [] } },
  adapters: { a: { onnx_adapter: "a" }, b: { onnx_adapter: "b" } },
  files: { "m.onnx": { sha256: "1" }, "m.data": { sha256: "2" }, "q.onnx": { sha256: "3" }, a: { sha256: "4" }, b: { sha256: "5" } },
  ...more,
});

describe("a manifest that is read again", () => {
  test("the same, keys in another order", () => {
    const again = manifest({ inputs: [{ shape: ["batch", "sequence"], name: "input_ids" }] });
    assert.deepEqual(compareManifests(manifest(), again, "fp32", "here"), { added: [], removed: [], replaced: [] });
  });

  test("adapters come, go and are replaced, by their entry or by their file", () => {
    const old = manifest();
    const files = { ...old.files, c: { sha256: "6" }, a: { sha256: "7" } };
    const now = manifest({ adapters: { a: { onnx_adapter: "a" }, c: { onnx_adapter: "c" } }, files });
    assert.deepEqual(compareManifests(old, now, "fp32", "here"), { added: ["c"], removed: ["b"], replaced: ["a"] });
    const labels = manifest({ adapters: { a: { onnx_adapter: "a", labels: ["x"] }, b: { onnx_adapter: "b" } } });
    assert.deepEqual(compareManifests(old, labels, "fp32", "here").replaced, ["a"]);
  });

  const { files, variants } = manifest();
  for (const [what, change] of /** @type {[string, any][]} */ ([
    ["base", { base: { identity: "1" } }],
    ["max_length", { max_length: 10 }],
    ["variant fp32", { variants: { ...variants, fp32: { ...variants.fp32, input_file: "web.onnx" } } }],
    ["variant fp32", { variants: { int8: variants.int8 } }],
    ["m.data", { files: { ...files, "m.data": { sha256: "9" } } }],
  ])) {
    test(`${what} differs`, () => {
      assert.throws(
        () => compareManifests(manifest(), manifest(change), "fp32", "here"),
        (e) => e instanceof BundleError && e.message.includes(`(${what} differs)`) && /Open the bundle again/.test(e.message),
      );
    });
  }

  test("another variant may change", () => {
    const now = manifest({ files: { ...files, "q.onnx": { sha256: "9" } } });
    assert.deepEqual(compareManifests(manifest(), now, "fp32", "here"), { added: [], removed: [], replaced: [] });
  });
});
