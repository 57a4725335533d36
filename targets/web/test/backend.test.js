/** What ONNX Runtime's log says of where nodes run, and pieces of prompts that a GPU reads rightly. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Backend, joined, parsePlacement } from "../src/backend.js";
import { pieceSize } from "../src/cache.js";

const line = (/** @type {string} */ text) => `2026-11-24 23:42:43.560779 [V:onnxruntime:, session_state.cc:1377 VerifyEachNodeIsAssignedToAnEp] ${text}`;

test("nodes are counted by provider, those on the CPU by operator", () => {
  const lines = [
    "2026-11-24 [I:onnxruntime:, transformer_memcpy.cc:393 AddCopyNode] Add MemcpyFromHost after x for WebGpuExecutionProvider",
    line("Node placements"),
    line(" Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3"),
    line("  Cast (a/Cast_1)"),
    line("  Shape (a/Shape_2)"),
    line("  Cast (a/Cast_3)"),
    line(" Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 55"),
    line("  Gather (model/embed/Gather_0)"),
  ];
  assert.deepEqual(parsePlacement(lines), { nodes: { CPU: 3, WebGpu: 55 }, cpu: { Cast: 2, Shape: 1 } });
});

test("where one provider has them all, it says so in other words", () => {
  assert.deepEqual(parsePlacement([line(" All nodes placed on [CPUExecutionProvider]. Number of nodes: 7")]), { nodes: { CPU: 7 }, cpu: {} });
});

test("the nodes of two graphs are added up", () => {
  const one = { nodes: { CPU: 3, WebGpu: 5 }, cpu: { Cast: 2, Shape: 1 } };
  assert.deepEqual(joined(null, one), one);
  assert.deepEqual(joined(one, { nodes: { CPU: 1 }, cpu: { Cast: 1 } }), { nodes: { CPU: 4, WebGpu: 5 }, cpu: { Cast: 3, Shape: 1 } });
});

/** @param {"wasm" | "webgpu"} device @param {(count: number, place: number) => number} logit @param {number} [context] */
const sizeOn = (device, logit, context = 2048) => {
  class Tensor {
    /** @param {string} type @param {any} data @param {number[]} dims */
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
  }
  const backend = new Backend(/** @type {any} */ ({ Tensor }), device, null);
  const inputs = ["past_key_values.0.key", "past_key_values.0.value"].map((name) => ({ name, dtype: "float", shape: ["batch", 2, "past", 4] }));
  const run = async (/** @type {any} */ { input_ids, attention_mask }) => {
    const count = input_ids.dims[1];
    const present = new Tensor("float32", new Float32Array(0), [1, 2, 0, 4]);
    const before = attention_mask.dims[1] - count;
    const data = Float32Array.from({ length: count * 3 }, (_, i) => logit(count, before + 1 + Math.floor(i / 3)));
    return { logits: new Tensor("float32", data, [1, count, 3]), "present.0.key": present, "present.0.value": present };
  };
  return pieceSize(backend, inputs, context, /** @type {any} */ (run));
};

test("prompts are read in small pieces where a GPU computes long ones wrongly", async () => {
  assert.equal(await sizeOn("webgpu", (count, place) => (count >= 32 ? 5 : place)), 16);
  assert.equal(await sizeOn("webgpu", (count) => (count >= 32 ? NaN : 1)), 16);
  assert.equal(await sizeOn("webgpu", (count, place) => place + count * 1e-3), 512, "rounding is no difference");
  assert.equal(await sizeOn("webgpu", (_, place) => place, 20), 512, "a short context is read whole");
  assert.equal(await sizeOn("wasm", () => assert.fail("nothing is to be found out")), 512);
});
