/** A bundle in ONNX Runtime Web: adapters to swap, texts to classify and to go on with. */

import { adapterTensors, checkLinear, makeActive, scaled } from "./active.js";
import { blendLabels, blendTensors, checkBlend, describeBlend } from "./blend.js";
import { blendEmbedding, Embedder, embeddingOf } from "./embedding.js";
import { BundleError, InputError, NonFiniteError, UnknownAdapterError } from "./errors.js";
import { findAdapter } from "./manifest.js";
import { checkMixed, mixedTensors } from "./mixed.js";
import { readChecked } from "./source.js";

/**
 * @typedef {import("./active.js").Active} Active
 * @typedef {import("./adapter.js").SlotTensor} SlotTensor
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./backend.js").InferenceSession} InferenceSession
 * @typedef {import("./backend.js").Placement} Placement
 * @typedef {import("./backend.js").Tensor} Tensor
 * @typedef {import("./manifest.js").FileEntry} FileEntry
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./source.js").Source} Source
 * @typedef {import("./tokenizer.js").Text} Text
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 * @typedef {{ label: string, score: number, probabilities: Record<string, number> }} Prediction
 * @typedef {{ data: Float32Array, dims: readonly number[] }} Output
 *
 * @typedef {object} UseOptions
 * @property {number} [scale]  Multiplies the low-rank part.
 * @property {string} [head]  Of a blend: the adapter whose head is taken, where they differ.
 */

/** One variant of a bundle in a session, and the adapter in use. Made by `openBundle`. */
export class Runtime {
  /** @type {Source} */ #source;
  /** @type {Backend} */ #backend;
  /** @type {InferenceSession} */ #session;
  /** Of an encoder-decoder, whose encoder is the session. @type {InferenceSession | null} */ #decoder;
  /** @type {Active} */ #base;
  /** @type {Active} */ #active;
  /** @type {Map<string, { tensors: Map<string, SlotTensor>, active: Active }>} */ #loaded = new Map();
  /** Runs one after the other: ONNX Runtime Web does not take two at a time. @type {Promise<unknown>} */ #last = Promise.resolve();
  /** @type {Promise<import("./generate.js").Generator> | null} */ #generator = null;
  /** @type {Promise<import("./seq2seq.js").Seq2Seq> | null} */ #seq2seq = null;
  /** @type {Embedder} */ #embedder;
  #asked = 0;
  #applied = 0;

  /**
   * @param {{ source: Source, name: string, manifest: Manifest, variant: string, backend: Backend, session: InferenceSession,
   *   decoder: InferenceSession | null, placement: Placement | null, encoder: TextEncoder | null, defaults: Feeds }} parts
   */
  constructor({ source, name, manifest, variant, backend, session, decoder, placement, encoder, defaults }) {
    this.#source = source;
    this.#backend = backend;
    this.#session = session;
    this.#decoder = decoder;
    this.#base = { name: null, scale: 1, labels: manifest.labels, feeds: defaults, prefix: null, prefixLength: 0 };
    this.#active = this.#base;
    /** Where the bundle is from. */
    this.name = name;
    this.manifest = manifest;
    /** The variant in the session. */
    this.variant = variant;
    /** `"wasm"` or `"webgpu"`. */
    this.device = backend.device;
    /** The GPU that runs it; `null` for wasm. */
    this.gpu = backend.gpu;
    /** Which nodes run where; `null` unless `openBundle` was asked to find out. */
    this.placement = placement;
    this.encoder = encoder;
    this.#embedder = new Embedder(source, manifest, name, backend, encoder);
  }

  /** Names of the adapters in the bundle. */
  get adapters() {
    return Object.keys(this.manifest.adapters);
  }

  /** The adapter in use, `null` for the base. */
  get active() {
    return this.#active.name;
  }

  /** Labels of the adapter in use, or of the base. */
  get labels() {
    return this.#active.labels;
  }

  /** Whether the head in use is the zero one that stands in for what the base's checkpoint lacks. */
  get labelsAreUntrained() {
    const { task, mode, base } = this.manifest;
    return task.endsWith("-classification") && this.active === null && mode === "swap" && base.fresh.length > 0;
  }

  /** Size of the base's vocabulary, from `config.json`. @returns {Promise<number>} */
  async vocabulary() {
    const entry = this.manifest.files["config.json"];
    const config = entry && JSON.parse(new TextDecoder().decode(await readChecked(this.#source, "config.json", entry)));
    if (!Number.isSafeInteger(config?.vocab_size)) throw new BundleError(`${this.name}/config.json has no vocab_size`);
    return config.vocab_size;
  }

  /**
   * Fetch and check an adapter, so that {@link use} swaps to it at once; fetched again where it was.
   *
   * @param {string} adapter
   * @throws {UnknownAdapterError} Naming the adapters there are.
   */
  async load(adapter) {
    await this.#load(adapter);
  }

  /**
   * Swap to an adapter, to a blend `{ a: 0.7, b: 0.3 }`, or back to the base with `null`. A run that has begun ends with the
   * adapter it began with; where a call fails, the adapter in use stays.
   *
   * A blend is the exact weighted sum of its adapters' changes.
   *
   * @param {string | Record<string, number> | null} adapter
   * @param {UseOptions} [options]
   * @returns {Promise<this>}
   * @throws {UnknownAdapterError} Naming the adapters there are.
   * @throws {InputError} For a scale or a weight on an adapter that is not linear in one (DoRA, IA3, prefixes), and for adapters
   *   of a blend that replace a parameter differently.
   */
  async use(adapter, { scale = 1, head } = {}) {
    const asked = ++this.#asked;
    const { merged } = this.manifest;
    if (typeof scale !== "number" || !Number.isFinite(scale)) throw new InputError(`scale must be a finite number, found ${scale}`);
    if (merged !== null) {
      if (typeof adapter === "object" && adapter !== null) throw new InputError(`${this.name} is merged with '${merged}'; it has no adapters to blend`);
      if (adapter !== null && adapter !== merged) throw new UnknownAdapterError(`${this.name} is merged with '${merged}'; it has no adapter '${adapter}'`);
      if (scale !== 1) throw new InputError(`${this.name} is merged with '${merged}', whose scale is fixed`);
      return this;
    }
    const active = await this.#choose(adapter, scale, head);
    // Where two calls overlap, the later one wins, however long either took to fetch.
    if (asked > this.#applied) {
      this.#applied = asked;
      this.#active = active;
    }
    return this;
  }

  /** @param {string | Record<string, number> | null} adapter @param {number} scale @param {string | undefined} head @returns {Promise<Active>} */
  async #choose(adapter, scale, head) {
    if (typeof adapter === "object" && adapter !== null) return this.#blend(adapter, scale, head);
    if (head !== undefined) throw new InputError(`head '${head}' is for blends; ${adapter === null ? "the base" : `'${adapter}'`} has its own`);
    if (adapter === null) return this.#base;
    const entry = findAdapter(this.manifest, this.name, adapter);
    if (scale !== 1) checkLinear(adapter, entry, "scaled");
    const { active } = await this.#loadOnce(adapter);
    return scale === 1 ? active : scaled(this.#backend, this.manifest, active, scale);
  }

  /** @param {Record<string, number>} weights @param {number} scale @param {string | undefined} head @returns {Promise<Active>} */
  async #blend(weights, scale, head) {
    checkBlend(this.manifest, this.name, weights, head);
    const tensors = blendTensors(this.manifest, weights, scale, head, await this.#tensorsOf(Object.keys(weights)));
    const labels = blendLabels(this.manifest, weights, head);
    const embedding = blendEmbedding(this.manifest, weights, head);
    return { ...makeActive(this.#backend, this.#base, describeBlend(weights), labels, tensors, this.manifest), scale, embedding };
  }

  /** @param {string[]} names @returns {Promise<Map<string, Map<string, SlotTensor>>>} */
  async #tensorsOf(names) {
    return new Map(await Promise.all(names.map(async (name) => /** @type {const} */ ([name, (await this.#loadOnce(name)).tensors]))));
  }

  /** @param {string} adapter */
  async #loadOnce(adapter) {
    return this.#loaded.get(adapter) ?? (await this.#load(adapter));
  }

  /** @param {string} adapter */
  async #load(adapter) {
    const entry = findAdapter(this.manifest, this.name, adapter);
    const bytes = await readChecked(this.#source, entry.onnx_adapter, /** @type {FileEntry} */ (this.manifest.files[entry.onnx_adapter]));
    const tensors = adapterTensors(bytes, adapter, entry, `${this.name}/${entry.onnx_adapter}`);
    const found = { tensors, active: makeActive(this.#backend, this.#base, adapter, entry.labels, tensors, this.manifest) };
    this.#loaded.set(adapter, found);
    return found;
  }

  /**
   * Run token ids through the base with the adapter in use.
   *
   * @param {Record<string, number[][]>} inputs  Rows of equal length by input name: exactly the bundle's inputs.
   * @returns {Promise<Record<string, Output>>} Raw outputs by name.
   * @throws {InputError} Where names or shapes are wrong, or ONNX Runtime cannot run them.
   */
  async forward(inputs) {
    return this.#forward(this.#tensors(inputs), this.#active);
  }

  /**
   * Run token ids with an adapter of its own for each row (`null`: the base). The adapter in use is not changed.
   *
   * @param {Record<string, number[][]>} inputs  As {@link forward} takes them.
   * @param {(string | null)[]} adapters  One for each row.
   * @returns {Promise<Record<string, Output>>} Raw outputs by name.
   * @throws {InputError} For adapters that cannot share a batch: of different label counts, or with edits that cannot differ by row.
   */
  async forwardMixed(inputs, adapters) {
    const tokens = this.#tensors(inputs);
    const rows = Object.values(tokens)[0]?.dims[0];
    if (rows !== adapters.length) throw new InputError(`${adapters.length} adapters for inputs with ${rows} rows; give one for each row`);
    const names = checkMixed(this.manifest, this.name, adapters);
    const tensors = mixedTensors(this.manifest, adapters, await this.#tensorsOf(names));
    return this.#forward(tokens, makeActive(this.#backend, this.#base, "", null, tensors, this.manifest));
  }

  /** @param {Feeds} tokens @param {Active} active @returns {Promise<Record<string, Output>>} */
  async #forward(tokens, active) {
    try {
      const found = await this.#run(tokens, active);
      return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, { data: /** @type {Float32Array} */ (tensor.data), dims: tensor.dims }]));
    } catch (error) {
      const shapes = Object.entries(tokens).map(([name, tensor]) => `${name} [${tensor.dims}]`);
      throw new InputError(
        `ONNX Runtime Web cannot run inputs of shape ${shapes.join(", ")} (this base takes token ids below its vocabulary size and at ` +
          `most ${this.manifest.max_length} tokens): ${/** @type {Error} */ (error).message ?? error}`,
        { cause: error },
      );
    }
  }

  /** @param {Feeds} feeds @param {Active} active @param {InferenceSession} [session] @returns {Promise<Feeds>} */
  #run(feeds, active, session = this.#session) {
    const run = this.#last.then(() => {
      const all = { ...active.feeds, ...feeds };
      // Each of two graphs has some of the slots, and takes no others.
      return session.run(this.#decoder === null ? all : Object.fromEntries(session.inputNames.map((name) => [name, /** @type {Tensor} */ (all[name])])));
    });
    this.#last = run.catch(() => {}); // whoever asked for that run is told; the next one may still work
    return /** @type {Promise<Feeds>} */ (run);
  }

  /** @param {Record<string, number[][]>} inputs @returns {Feeds} */
  #tensors(inputs) {
    const names = this.manifest.inputs.map((input) => input.name);
    if (Object.keys(inputs).sort().join() !== [...names].sort().join()) {
      throw new InputError(`inputs are [${Object.keys(inputs)}], the base takes exactly [${names}]`);
    }
    const shapes = new Set();
    /** @type {Feeds} */
    const tensors = {};
    for (const { name, dtype } of this.manifest.inputs) {
      const rows = inputs[name] ?? [];
      const width = rows[0]?.length ?? 0;
      if (dtype !== "int64" || !width || rows.some((row) => row.length !== width || !row.every(Number.isSafeInteger))) {
        throw new InputError(`input ${name} must be rows of equal length of whole numbers (the base takes ${dtype}), with at least one row and one token`);
      }
      shapes.add(`[${rows.length},${width}]`);
      tensors[name] = this.#backend.tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, width]);
    }
    if (shapes.size > 1) throw new InputError(`inputs differ in shape: ${[...shapes].join(", ")}`);
    return tensors;
  }

  /**
   * Padded rows for every input the base takes.
   *
   * @param {Text[]} texts
   * @returns {Record<string, number[][]>}
   */
  encode(texts) {
    if (this.encoder === null) throw new BundleError(`${this.name} holds no tokenizer.json, so it runs on token ids only: use forward`);
    const { ids, mask, types } = this.encoder.encodeBatch(texts);
    const rows = /** @type {Record<string, number[][]>} */ ({ input_ids: ids, attention_mask: mask, token_type_ids: types });
    return Object.fromEntries(Object.entries(rows).filter(([name]) => this.manifest.inputs.some((input) => input.name === name)));
  }

  /**
   * Embeddings of texts with the adapter in use, as sentence-transformers' `encode` gives them for the folder that was exported.
   *
   * @param {string[]} texts
   * @param {import("./embedding.js").EmbedOptions} [options]
   * @returns {Promise<number[][]>} A row for each text.
   * @throws {InputError} Where the bundle's task is another, or an option is wrong.
   * @throws {NonFiniteError} For embeddings that are NaN or infinite.
   */
  async embed(texts, options = {}) {
    const active = this.#active;
    const who = active.name === null ? "the base" : `adapter '${active.name}'`;
    return this.#embedder.embed(texts, embeddingOf(this.manifest, active), options, who, (inputs) => this.#forward(this.#tensors(inputs), active));
  }

  /**
   * Logits `[rows][labels]` for texts of a classification base.
   *
   * @param {Text[]} texts
   * @param {{ batchSize?: number }} [options]
   * @returns {Promise<number[][]>}
   */
  async logits(texts, { batchSize = 32 } = {}) {
    if (this.manifest.task !== "text-classification") throw new InputError(`this bundle's task is ${this.manifest.task}; use encode and forward`);
    if (!Number.isInteger(batchSize) || batchSize < 1) throw new InputError(`batchSize must be a whole number from 1 on, found ${batchSize}`);
    if (!Array.isArray(texts) || !texts.length) throw new InputError("no texts were given: pass a list of texts");
    const rows = [];
    for (let start = 0; start < texts.length; start += batchSize) {
      const { logits } = await this.forward(this.encode(texts.slice(start, start + batchSize)));
      if (logits === undefined) throw new BundleError(`${this.name}: the graph has no output named logits`);
      const width = logits.dims.at(-1) ?? 1;
      for (let at = 0; at < logits.data.length; at += width) rows.push(Array.from(logits.data.subarray(at, at + width)));
    }
    return rows;
  }

  /**
   * The best label of each text, with the adapter in use and its own labels.
   *
   * @param {Text[]} texts
   * @param {{ batchSize?: number }} [options]
   * @returns {Promise<Prediction[]>}
   * @throws {NonFiniteError} For logits that are NaN or infinite; `logits` gives them as they are.
   */
  async predict(texts, options) {
    const { labels, active } = this;
    const rows = await this.logits(texts, options);
    if (!rows.every((row) => row.every(Number.isFinite))) {
      throw new NonFiniteError(
        `${this.name}: ${active === null ? "the base" : `adapter '${active}'`} gives logits that are not finite numbers; try another variant or adapter`,
      );
    }
    return rows.map((row) => prediction(row, labels ?? row.map((_, i) => `LABEL_${i}`)));
  }

  /**
   * Go on with a text, or answer the messages of a chat: with the most probable token each time, or drawn from the probable
   * ones. The adapter in use when the call is made is used to the end.
   *
   * @param {string | import("./generate.js").Message[]} prompt
   * @param {import("./generate.js").GenerateOptions} [options]
   * @returns {Promise<import("./generate.js").Generation>}
   * @throws {InputError} For a bundle of another task, an empty prompt, or one as long as the context.
   */
  async generate(prompt, options = {}) {
    const active = this.#active;
    if (this.#decoder !== null) return this.#write(prompt, options, active, this.#decoder);
    const generator = await this.#generation();
    return generator.generate(prompt, options, (feeds) => this.#run(feeds, active), active);
  }

  /** @param {string | import("./generate.js").Message[]} text @param {import("./generate.js").GenerateOptions} options @param {Active} active @param {InferenceSession} decoder */
  async #write(text, options, active, decoder) {
    const { Seq2Seq } = await import("./seq2seq.js");
    this.#seq2seq ??= Seq2Seq.open(this.name, this.encoder, this.#backend, (file) => this.#text(file)).catch((error) => {
      this.#seq2seq = null;
      throw error;
    });
    const writer = await this.#seq2seq;
    if (typeof text !== "string") throw new InputError("an encoder-decoder reads one text, not messages");
    const inputs = this.#tensors(this.encode([text]));
    return writer.generate(
      inputs,
      options,
      (feeds) => this.#run(feeds, active),
      (feeds) => this.#run(feeds, active, decoder),
      decoder.inputNames,
    );
  }

  /**
   * The logits of the token after a text, `[vocabulary]`; the text is taken as it is.
   *
   * @param {string} text
   * @returns {Promise<Float32Array>}
   */
  async nextLogits(text) {
    const active = this.#active;
    const generator = await this.#generation();
    return generator.next(text, (feeds) => this.#run(feeds, active), active);
  }

  /** How many tokens of a prompt a language model reads at a time: few where a GPU computes more of them wrongly. */
  async tokensAtOnce() {
    return (await this.#generation()).piece;
  }

  /** What generation needs, read when it is first asked for; read again where that failed. */
  #generation() {
    this.#generator ??= import("./generate.js")
      .then(({ Generator }) =>
        Generator.open(
          this.manifest,
          this.name,
          this.encoder,
          this.#backend,
          (file) => this.#text(file),
          (feeds) => this.#run(feeds, this.#base),
        ),
      )
      .catch((error) => {
        this.#generator = null;
        throw error;
      });
    return this.#generator;
  }

  /** A file of the bundle, checked; `null` where there is none. @param {string} file */
  async #text(file) {
    const entry = this.manifest.files[file];
    return entry === undefined ? null : new TextDecoder().decode(await readChecked(this.#source, file, entry));
  }

  /** Free the session's memory; the runtime cannot be used afterwards. */
  async close() {
    await this.#last;
    await this.#session.release();
    await this.#decoder?.release();
    await this.#embedder.close();
  }
}

/** @param {number[]} logits @param {string[]} labels @returns {Prediction} */
function prediction(logits, labels) {
  if (logits.length !== labels.length) throw new InputError(`${logits.length} logits but ${labels.length} labels: ${labels.join(", ")}`);
  const top = Math.max(...logits);
  const exps = logits.map((x) => Math.exp(x - top));
  const sum = exps.reduce((total, x) => total + x, 0);
  const probabilities = exps.map((x) => x / sum);
  const best = logits.indexOf(top);
  return {
    label: labels[best] ?? "",
    score: probabilities[best] ?? 0,
    probabilities: Object.fromEntries(labels.map((label, i) => [label, probabilities[i] ?? 0])),
  };
}
