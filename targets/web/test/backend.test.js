/** What ONNX Runtime's log says of where nodes run. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { parsePlacement } from "../src/backend.js";

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
