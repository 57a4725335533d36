import assert from "node:assert/strict";
import { test } from "node:test";

import { headOf, prediction, taskOutputs } from "../src/heads.js";
import { hidePadding } from "../src/mixed.js";

/** @param {Partial<import("../src/heads.js").Head>} given @returns {import("../src/heads.js").Head} */
const head = (given) => ({ labels: null, problemType: null, activation: null, task: "text-classification", ...given });

/** A manifest with what heads are read from. @param {object} entry @param {object} [more] @returns {any} */
const manifest = (entry, more = {}) => ({
  task: "text-classification",
  labels: ["no", "yes"],
  problem_type: null,
  activation: null,
  tasks: {},
  outputs: [{ name: "logits" }],
  slots: { overrides: [{ parameter: "classifier.weight", tensor: "head", shape: ["adapter_batch", 4, "labels"] }] },
  adapters: { one: { labels: null, problem_type: null, activation: null, task: null, tensors: {}, ...entry } },
  ...more,
});

test("one label of several is a softmax", () => {
  const found = prediction([0, Math.log(3)], head({ labels: ["a", "b"] }), 0.5);
  assert.equal(found.label, "b");
  assert.ok(Math.abs(found.score - 0.75) < 1e-12);
  assert.equal(found.labels, undefined);
});

test("several labels have a sigmoid each, and those above the threshold are chosen, likeliest first", () => {
  const many = head({ labels: ["a", "b", "c"], problemType: "multi_label_classification" });
  const found = prediction([0.5, -3, 2], many, 0.5);
  assert.deepEqual(found.labels, ["c", "a"]);
  assert.ok(Math.abs((found.probabilities.b ?? 0) - 1 / (1 + Math.exp(3))) < 1e-12);
  assert.deepEqual(prediction([0.5, -3, 2], many, 0.7).labels, ["c"]);
  assert.deepEqual(prediction([-1000, -1000, -1000], many, 0.5).labels, []);
});

test("numbers stay numbers", () => {
  const found = prediction([2.5], head({}), 0.5);
  assert.equal(found.score, 2.5);
  assert.deepEqual(found.values, { LABEL_0: 2.5 });
  const scored = prediction([2.5], head({ activation: "sigmoid" }), 0.5);
  assert.ok(Math.abs(scored.score - 1 / (1 + Math.exp(-2.5))) < 1e-12);
  assert.deepEqual(scored.logits, { LABEL_0: 2.5 });
  assert.equal(prediction([2.5], head({ problemType: "single_label_classification" }), 0.5).kind, "regression");
});

test("an adapter has the base's names and kind where it has as many outputs", () => {
  assert.deepEqual(headOf(manifest({}), "one").labels, ["no", "yes"]);
  assert.deepEqual(headOf(manifest({ tensors: { head: [1, 4, 3] } }), "one").labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
  const many = manifest({ tensors: { head: [1, 4, 3] } }, { problem_type: "multi_label_classification" });
  assert.equal(headOf(many, "one").problemType, "multi_label_classification");
  assert.equal(headOf(manifest({ tensors: { head: [1, 4, 1] } }), "one").activation, "sigmoid");
  const reward = manifest({ tensors: { head: [1, 4, 1] } }, { slots: { overrides: [{ parameter: "score.weight", tensor: "head", shape: [1, 4, "labels"] }] } });
  assert.equal(headOf(reward, "one").activation, "identity");
});

test("over a base of several tasks an adapter has its own task's head and outputs", () => {
  const tasks = {
    "feature-extraction": { outputs: { last_hidden_state: "last_hidden_state" }, labels: null, problem_type: null, activation: null },
    "token-classification": { outputs: { logits: "token-classification.logits" }, labels: ["O", "B"], problem_type: null, activation: null },
  };
  const shared = manifest({ task: "token-classification" }, { task: "feature-extraction", labels: null, tasks });
  assert.equal(headOf(shared, "one").task, "token-classification");
  assert.deepEqual(headOf(shared, "one").labels, ["O", "B"]);
  assert.deepEqual(taskOutputs(shared, "token-classification"), [["logits", "token-classification.logits"]]);
  assert.deepEqual(taskOutputs(manifest({}), "text-classification"), [["logits", "logits"]]);
});

test("what pads narrower heads is minus infinity", () => {
  const logits = { data: Float32Array.from([1, 2, 0, 3, 4, 5]), dims: [2, 3] };
  hidePadding(logits, [2, 3]);
  assert.deepEqual(Array.from(logits.data), [1, 2, -Infinity, 3, 4, 5]);
});
