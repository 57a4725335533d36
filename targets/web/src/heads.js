/** What the numbers of a head mean: its labels, and what makes scores of its logits. */

import { InputError } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").ProblemType} ProblemType
 * @typedef {import("./manifest.js").Activation} Activation
 *
 * @typedef {object} Head  A head of the base or of an adapter; `null` stands for what nobody said.
 * @property {string[] | null} labels
 * @property {ProblemType | null} problemType
 * @property {Activation | null} activation
 * @property {string} task
 *
 * @typedef {object} Prediction
 * @property {ProblemType} kind  One label of several, any number of labels, or numbers.
 * @property {string} label  The best label; of numbers the name of the first.
 * @property {number} score  Its probability; of numbers the first.
 * @property {Record<string, number>} probabilities  By label: a softmax over all, or of a multi-label head a sigmoid each. Empty for numbers.
 * @property {string[]} [labels]  Of a multi-label head: those above the threshold, likeliest first.
 * @property {Record<string, number>} [values]  Of a head of numbers: its outputs by name, after the head's activation.
 * @property {Record<string, number>} [logits]  The same before it.
 */

/** @param {number} width */
const numbered = (width) => Array.from({ length: width }, (_, i) => `LABEL_${i}`);

/** What makes a score of a head of one output where nobody said: a reward model's number as it is, else a cross-encoder's sigmoid. @param {Manifest} manifest @returns {Activation} */
const ofOneNumber = (manifest) => (manifest.slots.overrides.some(({ parameter }) => /(^|\.)score\.weight$/.test(parameter)) ? "identity" : "sigmoid");

/**
 * The base's own head for one of its tasks; by default for the one that it has without an adapter.
 *
 * @param {Manifest} manifest @param {string | null} [task]
 * @returns {Head}
 */
export function baseHead(manifest, task = null) {
  const entry = task === null || task === manifest.task ? manifest : (manifest.tasks[task] ?? manifest);
  return { labels: entry.labels, problemType: entry.problem_type, activation: entry.activation, task: task ?? manifest.task };
}

/**
 * The head that an adapter runs with, `null` for the base: what its entry says, else what the base's config does where that suits.
 *
 * @param {Manifest} manifest @param {string | null} adapter
 * @returns {Head}
 */
export function headOf(manifest, adapter) {
  const entry = adapter === null ? undefined : manifest.adapters[adapter];
  if (entry === undefined) return baseHead(manifest);
  const base = baseHead(manifest, entry.task);
  const wide = base.labels?.length ?? 0;
  const count = headWidth(manifest, entry.tensors) ?? wide;
  const own = { labels: entry.labels, problemType: entry.problem_type, activation: entry.activation, task: base.task };
  if (!count) return own;
  const suits = base.problemType !== null && (count > 1 === wide > 1 || count === wide);
  const problemType = own.problemType ?? (suits ? base.problemType : null);
  let { activation } = own;
  if (own.problemType === null && activation === null && suits && count === wide) activation = base.activation;
  if (count === 1 && problemType === null && activation === null) activation = (count === wide ? base.activation : null) ?? ofOneNumber(manifest);
  return { ...own, labels: own.labels ?? (base.labels !== null && count === wide ? base.labels : numbered(count)), problemType, activation };
}

/** Whether a dimension of a slot is its head's labels. @param {number | string | undefined} dim */
export const isLabelAxis = (dim) => typeof dim === "string" && (dim === "labels" || dim.endsWith(".labels"));

/** How many outputs the head has that an adapter brings. @param {Manifest} manifest @param {Record<string, number[]>} tensors */
function headWidth(manifest, tensors) {
  const slot = manifest.slots.overrides.find(({ tensor, shape }) => tensors[tensor] !== undefined && isLabelAxis(shape.at(-1)));
  return slot === undefined ? undefined : tensors[slot.tensor]?.at(-1);
}

/**
 * The outputs of a task by the names that its model gives them, and by the graph's.
 *
 * @param {Manifest} manifest @param {string} task
 * @returns {[string, string][]}
 */
export function taskOutputs(manifest, task) {
  const entry = manifest.tasks[task];
  return entry === undefined ? manifest.outputs.map(({ name }) => [name, name]) : Object.entries(entry.outputs);
}

/** @param {Head} head @param {number} width @returns {ProblemType} */
function kindOf({ problemType }, width) {
  if (problemType === null || (problemType === "single_label_classification" && width === 1)) return width > 1 ? "single_label_classification" : "regression";
  return problemType;
}

/** @type {Record<ProblemType, Activation>} */
const USUAL = { single_label_classification: "softmax", multi_label_classification: "sigmoid", regression: "identity" };

/** @type {Record<Activation, (logits: number[]) => number[]>} */
const FUNCTIONS = {
  softmax(logits) {
    const top = Math.max(...logits);
    const exps = logits.map((x) => Math.exp(x - top));
    const sum = exps.reduce((total, x) => total + x, 0);
    return exps.map((x) => x / sum);
  },
  sigmoid: (logits) => logits.map((x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)))),
  identity: (logits) => logits,
};

/**
 * What one row of logits says, by the kind of its head.
 *
 * @param {number[]} logits @param {Head} head @param {number} threshold  The probability above which a label of a multi-label head is chosen.
 * @returns {Prediction}
 * @throws {InputError} Where there are more or fewer labels than logits.
 */
export function prediction(logits, head, threshold) {
  const labels = head.labels ?? numbered(logits.length);
  if (logits.length !== labels.length) throw new InputError(`${logits.length} logits but ${labels.length} labels: ${labels.join(", ")}`);
  const kind = kindOf(head, logits.length);
  const scores = FUNCTIONS[head.activation ?? USUAL[kind]](logits);
  /** @param {number[]} numbers */
  const named = (numbers) => Object.fromEntries(labels.map((label, i) => [label, numbers[i] ?? 0]));
  if (kind === "regression") return { kind, label: labels[0] ?? "", score: scores[0] ?? 0, probabilities: {}, values: named(scores), logits: named(logits) };
  const best = scores.indexOf(Math.max(...scores));
  const found = { kind, label: labels[best] ?? "", score: scores[best] ?? 0, probabilities: named(scores) };
  if (kind === "single_label_classification") return found;
  const order = scores.map((score, i) => /** @type {const} */ ([score, i])).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  return { ...found, labels: order.filter(([score]) => score > threshold).map(([, i]) => labels[i] ?? "") };
}
