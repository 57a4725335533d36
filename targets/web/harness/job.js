/**
 * Runs what `edgepeft validate|bench|check --target web-wasm` asks: the same job and answer, as JSON, that a native
 * measuring process takes and gives (`edgepeft/worker/job.py`).
 */

import { BundleError, InputError, NonFiniteError } from "../src/errors.js";
import { openBundle } from "../src/open.js";
import { Random } from "../src/random.js";

/**
 * @typedef {import("../src/runtime.js").Runtime} Runtime
 * @typedef {{ adapter: string | null, batch: number, sequence: number, phase: "run" | "decode" }} Case
 * @typedef {{ adapter: string | null, texts: string[], pairs: string[] | null, batch: number }} Rows
 * @typedef {{ adapter: string | null, texts: string[], max_new_tokens: number, chat: boolean | null }} Prompts
 * @typedef {{ warmup_s: number, measure_s: number, min_iterations: number, max_iterations: number, seed: number }} Sampling
 * @typedef {object} Job
 * @property {string} bundle
 * @property {string} variant
 * @property {number} threads
 * @property {Case[]} cases
 * @property {Sampling} sampling
 * @property {number} swaps
 * @property {Rows[]} rows
 * @property {Prompts[]} prompts
 * @property {boolean} restore
 * @property {"wasm" | "webgpu"} [device]
 */

/** Texts that the base runs before and after the adapters: of different lengths, so that one is padded. */
const PROBES = ["good", "not what I had hoped for, though it arrived on time"];
/** Swaps followed by an inference, which is the costly part; the rest are timed without. */
const SWAPS_WITH_INFERENCE = 20;
/** How long the engine may take to compile well what runs often, and how often it is looked whether it has. */
const TIER_UP_S = 12;
const TIER_UP_STEP_S = 1.5;
/** Of a language model, whose runs are long. */
const SWAPS_WITH_PROMPT = 3;

/**
 * @param {Job} job
 * @param {() => number | null} rss  Resident set in MB now, where the platform tells.
 */
export async function runJob(job, rss = () => null) {
  const start = rss();
  const opening = performance.now();
  const { device = "wasm" } = job;
  const runtime = await openBundle(job.bundle, { variant: job.variant, threads: job.threads, device, placement: device === "webgpu" });
  const load_ms = performance.now() - opening;
  const loaded = rss();
  try {
    const { rows, restored } = await runRows(runtime, job);
    const generated = [];
    for (const prompts of job.prompts ?? []) generated.push(await generate(runtime, prompts));
    if (job.cases.length && isLanguageModel(runtime)) {
      throw new InputError("latency of a language model is not measured by shape here: ask for prompts, which tell milliseconds and tokens/s");
    }
    const cases = [];
    if (job.cases[0]) await tierUp(runtime, job.cases[0], job.sampling);
    for (const each of job.cases) {
      const samples_ms = await measureCase(runtime, each, job.sampling);
      cases.push({ case: each, samples_ms, not_finite: await notFinite(runtime, each, job.sampling) });
    }
    const swap = job.swaps ? await measureSwaps(runtime, job, rss) : null;
    return { load_ms, rss_start_mb: start, rss_loaded_mb: loaded, rows, generated, base_restored: restored, cases, swap, notes: await placementNotes(runtime) };
  } finally {
    await runtime.close();
  }
}

/** Where WebGPU ran it, and what it left to the CPU: ONNX Runtime falls back without a word. @param {Runtime} runtime @returns {Promise<string[]>} */
async function placementNotes(runtime) {
  const { gpu, placement } = runtime;
  if (gpu === null || placement === null) return [];
  const { nodes, cpu } = placement;
  if (!nodes.WebGpu) throw new BundleError(`no node of ${runtime.name} runs on WebGPU: ONNX Runtime Web put all of them on the CPU`);
  const total = Object.values(nodes).reduce((sum, count) => sum + count, 0);
  const operators = Object.entries(cpu)
    .sort(([, a], [, b]) => b - a)
    .map(([operator, count]) => `${count} ${operator}`);
  const left = operators.length ? `; on the CPU, in WebAssembly: ${operators.join(", ")}` : "";
  const piece = isLanguageModel(runtime) ? await runtime.tokensAtOnce() : null;
  const small = piece !== null && piece < 32 ? [`prompts are read ${piece} tokens at a time: longer pieces gave other logits on this GPU`] : [];
  return [
    ...small,
    `GPU: ${[gpu.vendor, gpu.architecture].filter(Boolean).join(" ") || "not named"}${gpu.software ? ", which is software on the CPU" : ""}`,
    `${nodes.WebGpu ?? 0} of ${total} nodes ran on WebGPU${left}`,
  ];
}

/** @param {Runtime} runtime */
const isLanguageModel = (runtime) => runtime.manifest.task === "text-generation";

/** @param {Runtime} runtime @param {Prompts} prompts */
async function generate(runtime, { adapter, texts, max_new_tokens, chat }) {
  await runtime.use(adapter);
  const found = [];
  let not_finite = "";
  for (const text of texts) {
    try {
      found.push(await runtime.generate(text, { maxNewTokens: max_new_tokens, temperature: 0, ...(chat === null ? {} : { chat }) }));
    } catch (error) {
      if (!(error instanceof NonFiniteError)) throw error;
      not_finite = error.message; // a finding, which a gate reports
      found.push({ tokens: [], text: "", prefillMs: 0, tokensPerSecond: null });
    }
  }
  return {
    adapter,
    tokens: found.map((each) => each.tokens),
    texts: found.map((each) => each.text),
    prefill_ms: found.map((each) => each.prefillMs),
    tokens_per_s: found.map((each) => each.tokensPerSecond),
    not_finite,
  };
}

/** A number as JSON holds it: `JSON.stringify` writes null for NaN and infinities, so these go by name. @param {number} value */
const jsonNumber = (value) => (Number.isFinite(value) ? value : String(value));

/** @param {Runtime} runtime @param {Job} job */
async function runRows(runtime, job) {
  /** @type {(string | null)[]} */
  const every = [null, ...runtime.adapters];
  const before = job.restore ? await probe(runtime, every) : null;
  const rows = [];
  for (const { adapter, texts, pairs, batch } of job.rows) {
    await runtime.use(adapter);
    const inputs = pairs === null ? texts : texts.map((text, i) => /** @type {[string, string]} */ ([text, pairs[i] ?? ""]));
    rows.push({ adapter, logits: (await runtime.logits(inputs, { batchSize: batch })).map((row) => row.map(jsonNumber)) });
  }
  if (before === null) return { rows, restored: null };
  const after = await probe(runtime, every.toReversed());
  return { rows, restored: every.every((name) => before.get(name) === after.get(name)) };
}

/**
 * The bits that the base and every adapter give. The adapters too: a base whose head is not trained answers zeros, whatever
 * adapter is left in its layers.
 *
 * @param {Runtime} runtime @param {(string | null)[]} names
 * @returns {Promise<Map<string | null, string>>}
 */
async function probe(runtime, names) {
  const found = new Map();
  for (const name of names) {
    await runtime.use(name);
    const outputs = isLanguageModel(runtime)
      ? await Promise.all(PROBES.map(async (text) => ({ data: await runtime.nextLogits(text) })))
      : Object.values(await runtime.forward(probeInputs(runtime, PROBES, 0)));
    found.set(name, outputs.map(({ data }) => new Uint32Array(data.buffer, data.byteOffset, data.length).join(" ")).join("\n"));
  }
  await runtime.use(null);
  return found;
}

/** @param {Runtime} runtime @param {string[]} texts @param {number} seed */
function probeInputs(runtime, texts, seed) {
  return runtime.encoder === null ? randomInputs(runtime, 2, texts.length, 8, seed) : runtime.encode(texts);
}

/**
 * Seeded random token ids with full masks for every input of the bundle.
 *
 * @param {Runtime} runtime @param {number} vocabulary @param {number} batch @param {number} sequence @param {number} seed
 * @returns {Record<string, number[][]>}
 */
function randomInputs(runtime, vocabulary, batch, sequence, seed) {
  const { max_length: limit, inputs } = runtime.manifest;
  if (limit !== null && sequence > limit) throw new InputError(`shape ${batch}x${sequence}: the bundle takes at most ${limit} tokens`);
  const random = new Random([seed]);
  /** @param {(column: number) => number} cell */
  const rows = (cell) => Array.from({ length: batch }, () => Array.from({ length: sequence }, (_, i) => cell(i)));
  /** @type {Record<string, () => number[][]>} */
  const fill = {
    input_ids: () => rows(() => Math.floor(random.random() * vocabulary)),
    attention_mask: () => rows(() => 1),
    token_type_ids: () => rows(() => 0),
    position_ids: () => rows((column) => column),
  };
  const unknown = inputs.filter(({ name }) => !fill[name]).map(({ name }) => name);
  if (unknown.length) throw new InputError(`cannot make samples for input ${unknown.join(", ")}; known inputs: ${Object.keys(fill).join(", ")}`);
  return Object.fromEntries(inputs.map(({ name }) => [name, /** @type {() => number[][]} */ (fill[name])()]));
}

/**
 * Run until it gets no quicker. Engines compile WebAssembly twice, quickly first and then, for what runs often, well and in
 * the background: until that is done, runs take about twice as long.
 *
 * @param {Runtime} runtime @param {Case} shape @param {Sampling} sampling
 */
async function tierUp(runtime, shape, sampling) {
  const end = performance.now() + TIER_UP_S * 1e3;
  /** @param {number[]} samples */
  const median = (samples) => samples.toSorted((a, b) => a - b)[samples.length >> 1] ?? 0;
  for (let last = Infinity, better = true; better && performance.now() < end; ) {
    const now = median(await measureCase(runtime, shape, { ...sampling, warmup_s: 0, measure_s: TIER_UP_STEP_S, min_iterations: 3 }));
    better = now < 0.9 * last;
    last = now;
  }
}

/** @param {Runtime} runtime @param {Case} shape @param {Sampling} sampling @returns {Promise<number[]>} Milliseconds of each call. */
async function measureCase(runtime, { adapter, batch, sequence }, sampling) {
  await runtime.use(adapter);
  const inputs = randomInputs(runtime, await runtime.vocabulary(), batch, sequence, sampling.seed);
  const warm = performance.now();
  for (let count = 1; ; count++) {
    await runtime.forward(inputs);
    if (count >= 2 && performance.now() - warm >= sampling.warmup_s * 1e3) break;
  }
  const samples = [];
  const begin = performance.now();
  while (samples.length < sampling.max_iterations) {
    const start = performance.now();
    await runtime.forward(inputs);
    samples.push(performance.now() - start);
    if (samples.length >= sampling.min_iterations && performance.now() - begin >= sampling.measure_s * 1e3) break;
  }
  return samples;
}

/**
 * Which outputs of a case are not finite numbers, in words; empty where all are.
 *
 * @param {Runtime} runtime @param {Case} shape @param {Sampling} sampling
 */
async function notFinite(runtime, { adapter, batch, sequence }, sampling) {
  await runtime.use(adapter);
  const outputs = await runtime.forward(randomInputs(runtime, await runtime.vocabulary(), batch, sequence, sampling.seed));
  return Object.entries(outputs)
    .map(([name, { data }]) => ({ name, size: data.length, bad: Array.from(data, Number).filter((value) => !Number.isFinite(value)).length }))
    .filter(({ bad }) => bad)
    .map(({ name, size, bad }) => `${bad} of ${size} numbers of output ${name}`)
    .join(", ");
}

/** @param {Runtime} runtime @param {Job} job @param {() => number | null} rss */
async function measureSwaps(runtime, job, rss) {
  const names = runtime.adapters.length > 1 ? runtime.adapters : [...runtime.adapters, null];
  const cold_ms = [];
  // `load` fetches, checks and parses an adapter each time it is called.
  for (const name of runtime.adapters) {
    const start = performance.now();
    await runtime.load(name);
    cold_ms.push(performance.now() - start);
  }
  const smallest = [...job.cases].sort((a, b) => a.batch * a.sequence - b.batch * b.sequence)[0];
  const speaks = isLanguageModel(runtime);
  const inputs = speaks ? {} : randomInputs(runtime, await runtime.vocabulary(), smallest?.batch ?? 1, smallest?.sequence ?? 8, job.sampling.seed);
  const before = rss();
  const use_ms = [];
  const first_inference_ms = [];
  for (let i = 0; i < job.swaps; i++) {
    const start = performance.now();
    await runtime.use(names[i % names.length] ?? null);
    use_ms.push(performance.now() - start);
    if (i < (speaks ? SWAPS_WITH_PROMPT : SWAPS_WITH_INFERENCE)) {
      await (speaks ? runtime.nextLogits("good") : runtime.forward(inputs));
      first_inference_ms.push(performance.now() - start);
    }
  }
  return { cold_ms, use_ms, first_inference_ms, rss_before_mb: before, rss_after_mb: rss() };
}
