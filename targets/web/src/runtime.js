/** A bundle in ONNX Runtime Web: adapters to swap, texts to classify and to go on with. */

import { adapterTensors, checkLinear, makeActive, scaled } from "./active.js";
import { blendHead, blendTensors, blendText, checkBlend, describeBlend } from "./blend.js";
import { blendEmbedding, Embedder, embeddingOf } from "./embedding.js";
import { BundleError, InputError, NonFiniteError, UnknownAdapterError } from "./errors.js";
import { baseHead, headOf, prediction, taskOutputs } from "./heads.js";
import { findAdapter } from "./manifest.js";
import { checkMixed, hidePadding, mixedTensors } from "./mixed.js";
import { compareManifests } from "./refresh.js";
import { Residents } from "./residents.js";
import { readChecked } from "./source.js";
import { NO_TEXT } from "./texts.js";

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
 * @typedef {import("./texts.js").Texts} Texts
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 * @typedef {import("./heads.js").Prediction} Prediction
 * @typedef {{ data: Float32Array, dims: readonly number[] }} Output
 *
 * @typedef {object} UseOptions
 * @property {number} [scale]  Multiplies the low-rank part.
 * @property {string} [head]  Of a blend: the adapter whose head is taken, where they differ.
 */

/** The task of what writes down speech. */
const SPEECH = "automatic-speech-recognition";

/** One variant of a bundle in a session, and the adapter in use. Made by `openBundle`. */
export class Runtime {
  /** @type {Source} */ #source;
  /** @type {Backend} */ #backend;
  /** @type {InferenceSession} */ #session;
  /** Of an encoder-decoder, whose encoder is the session. @type {InferenceSession | null} */ #decoder;
  /** @type {Active} */ #base;
  /** @type {Active} */ #active;
  /** @type {Residents<{ tensors: Map<string, SlotTensor>, active: Active }>} */ #loaded;
  /** @type {() => Promise<Manifest>} */ #readManifest;
  /** Runs one after the other: ONNX Runtime Web does not take two at a time. @type {Promise<unknown>} */ #last = Promise.resolve();
  /** By the text of the adapter. @type {Map<string, Promise<import("./generate.js").Generator>>} */ #generators = new Map();
  /** @type {Map<string, Promise<import("./seq2seq.js").Seq2Seq>>} */ #writers = new Map();
  /** @type {Map<string, Promise<import("./speech.js").Transcriber>>} */ #transcribers = new Map();
  /** @type {Texts} */ #texts;
  /** @type {Embedder} */ #embedder;
  #asked = 0;
  #applied = 0;

  /**
   * @param {{ source: Source, name: string, manifest: Manifest, variant: string, backend: Backend, session: InferenceSession,
   *   decoder: InferenceSession | null, placement: Placement | null, encoder: TextEncoder | null, texts: Texts, defaults: Feeds,
   *   resident: number, readManifest: () => Promise<Manifest> }} parts
   */
  constructor({ source, name, manifest, variant, backend, session, decoder, placement, encoder, texts, defaults, resident, readManifest }) {
    this.#source = source;
    this.#loaded = new Residents(resident);
    this.#readManifest = readManifest;
    this.#backend = backend;
    this.#session = session;
    this.#decoder = decoder;
    this.#base = {
      name: null,
      scale: 1,
      head: baseHead(manifest),
      feeds: defaults,
      prefix: null,
      prefixLength: 0,
      encoder,
      own: NO_TEXT,
      embedding: embeddingOf(manifest, null),
    };
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
    this.#texts = texts;
    this.#embedder = new Embedder(source, name, backend);
  }

  /** The tokenizer of the adapter in use: its own, or the base's; `null` where there is none. */
  get encoder() {
    return this.#active.encoder;
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
    return this.#active.head.labels;
  }

  /** What the adapter in use is for; over a base of several tasks, its own. */
  get task() {
    return this.#active.head.task;
  }

  /** Whether the head in use is the zero one that stands in for what the base's checkpoint lacks. */
  get labelsAreUntrained() {
    const { mode, base } = this.manifest;
    return this.task.endsWith("-classification") && this.active === null && mode === "swap" && base.fresh.length > 0;
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

  /** The adapters in memory, the one used longest ago first: at most as many as `openBundle`'s `resident` says. */
  get resident() {
    return this.#loaded.names;
  }

  /**
   * Let go of an adapter's memory. The one in use goes on, and is freed when another is used; the next {@link use} fetches it again.
   *
   * @param {string} adapter
   * @throws {UnknownAdapterError} Naming the adapters there are.
   */
  unload(adapter) {
    findAdapter(this.manifest, this.name, adapter);
    this.#loaded.delete(adapter);
  }

  /**
   * Read the manifest again, so that adapters that were added since can be used and removed ones are gone. The adapter in use
   * stays as it is, whatever became of it.
   *
   * @returns {Promise<import("./refresh.js").Refreshed>}
   * @throws {BundleError} Where the base is no longer the one that is open: open the bundle again.
   * @throws {AdapterMismatchError} Where an adapter was made for another base.
   */
  async refresh() {
    const now = await this.#readManifest();
    const found = compareManifests(this.manifest, now, this.variant, this.name);
    for (const name of [...found.removed, ...found.replaced]) this.#loaded.delete(name);
    this.manifest = now;
    this.#texts = this.#texts.of(now);
    return found;
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
    const embedding = blendEmbedding(this.manifest, weights, head);
    const own = this.manifest.adapters[head ?? blendText(weights)]?.text ?? NO_TEXT;
    const made = makeActive(this.#backend, this.#base, describeBlend(weights), blendHead(this.manifest, weights, head), tensors, this.manifest);
    return { ...made, scale, own, embedding, encoder: await this.#texts.encoder(own) };
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
    const { manifest } = this;
    const entry = findAdapter(manifest, this.name, adapter);
    const bytes = await readChecked(this.#source, entry.onnx_adapter, /** @type {FileEntry} */ (manifest.files[entry.onnx_adapter]));
    const tensors = adapterTensors(bytes, adapter, entry, `${this.name}/${entry.onnx_adapter}`);
    const made = makeActive(this.#backend, this.#base, adapter, headOf(manifest, adapter), tensors, manifest);
    const found = { tensors, active: { ...made, own: entry.text, encoder: await this.#texts.encoder(entry.text), embedding: embeddingOf(manifest, adapter) } };
    if (manifest === this.manifest) this.#loaded.set(adapter, found); // otherwise refreshed meanwhile: it may be another now
    return found;
  }

  /**
   * Run token ids through the base with the adapter in use.
   *
   * @param {Record<string, number[][]>} inputs  Rows of equal length by input name: exactly the bundle's inputs.
   * @returns {Promise<Record<string, Output>>} Raw outputs by name, over a base of several tasks those of the adapter's.
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
   * @returns {Promise<Record<string, Output>>} Raw outputs by name. Where rows have heads of different label counts, `logits` is as
   *   wide as the widest, and minus infinity stands behind the labels of the others.
   * @throws {InputError} For adapters that cannot share a batch: of different tasks, or with edits that cannot differ by row.
   */
  async forwardMixed(inputs, adapters) {
    const tokens = this.#tensors(inputs);
    const rows = Object.values(tokens)[0]?.dims[0];
    if (rows !== adapters.length) throw new InputError(`${adapters.length} adapters for inputs with ${rows} rows; give one for each row`);
    const names = checkMixed(this.manifest, this.name, adapters);
    const heads = adapters.map((name) => headOf(this.manifest, name));
    const counts = heads.map(({ labels }) => labels?.length ?? 0);
    const tensors = mixedTensors(this.manifest, adapters, await this.#tensorsOf(names), counts);
    const head = /** @type {import("./heads.js").Head} */ (heads[0]);
    const found = await this.#forward(tokens, makeActive(this.#backend, this.#base, "", { ...head, labels: null }, tensors, this.manifest));
    if (found.logits !== undefined) hidePadding(found.logits, counts);
    return found;
  }

  /** @param {Feeds} tokens @param {Active} active @returns {Promise<Record<string, Output>>} */
  async #forward(tokens, active) {
    try {
      const found = await this.#run(tokens, active);
      const outputs = taskOutputs(this.manifest, active.head.task).map(([own, name]) => /** @type {const} */ ([own, /** @type {Tensor} */ (found[name])]));
      return Object.fromEntries(outputs.map(([own, tensor]) => [own, { data: /** @type {Float32Array} */ (tensor.data), dims: tensor.dims }]));
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
      const all = this.#backend.typed(session, { ...active.feeds, ...feeds });
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
    return this.#embedder.embed(this.manifest, active, texts, options, (inputs) => this.#forward(this.#tensors(inputs), active));
  }

  /**
   * Logits `[rows][labels]` for texts of a classification base.
   *
   * @param {Text[]} texts
   * @param {{ batchSize?: number }} [options]
   * @returns {Promise<number[][]>}
   */
  async logits(texts, { batchSize = 32 } = {}) {
    if (this.task !== "text-classification") throw new InputError(`this bundle's task is ${this.task}; use encode and forward`);
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
   * What the head of the adapter in use says of each text: the best label, every label above `threshold` where it may be several, or
   * numbers, as the head's `problem_type` says.
   *
   * @param {Text[]} texts
   * @param {{ batchSize?: number, threshold?: number }} [options]
   * @returns {Promise<Prediction[]>}
   * @throws {NonFiniteError} For logits that are NaN or infinite; `logits` gives them as they are.
   */
  async predict(texts, options = {}) {
    const { active } = this;
    const { head } = this.#active;
    const { threshold = 0.5 } = options;
    if (!(threshold >= 0 && threshold <= 1)) throw new InputError(`threshold must lie between 0 and 1, found ${threshold}`);
    const rows = await this.logits(texts, options);
    if (!rows.every((row) => row.every(Number.isFinite))) {
      throw new NonFiniteError(
        `${this.name}: ${active === null ? "the base" : `adapter '${active}'`} gives logits that are not finite numbers; try another variant or adapter`,
      );
    }
    return rows.map((row) => prediction(row, head, threshold));
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
    if (this.manifest.task === SPEECH) throw new InputError(`${this.name} writes down speech: call transcribe with sound`);
    if (this.#decoder !== null) return this.#write(prompt, options, active, this.#decoder);
    const generator = await this.#generation(active);
    return generator.generate(prompt, options, (feeds) => this.#run(feeds, active), active);
  }

  /**
   * Write down speech. Sound that is longer than the model's window (30 s) is cut where it is quiet, and the texts are joined.
   * The adapter in use when the call is made is used to the end.
   *
   * @param {Float32Array} wave  One channel's samples, of -1 to 1: `audioBuffer.getChannelData(0)`.
   * @param {import("./speech.js").TranscribeOptions} [options]
   * @returns {Promise<import("./speech.js").Transcription>}
   * @throws {InputError} For a bundle of another task, an empty wave or one of another rate, a language that the model does not know.
   */
  async transcribe(wave, options = {}) {
    const [active, decoder] = [this.#active, this.#decoder];
    if (this.manifest.task !== SPEECH || decoder === null) {
      throw new InputError(`${this.name} is for ${this.manifest.task}; transcribing needs a model that writes down speech`);
    }
    const { Transcriber } = await import("./speech.js");
    const writer = await this.#once(this.#transcribers, active, (read) => Transcriber.open(this.name, active.encoder, this.#backend, read, this.manifest));
    return writer.transcribe(
      wave,
      options,
      (feeds) => this.#run(feeds, active),
      (feeds) => this.#run(feeds, active, decoder),
      decoder.inputNames,
    );
  }

  /** @param {string | import("./generate.js").Message[]} text @param {import("./generate.js").GenerateOptions} options @param {Active} active @param {InferenceSession} decoder */
  async #write(text, options, active, decoder) {
    const { Seq2Seq } = await import("./seq2seq.js");
    const writer = await this.#once(this.#writers, active, (read) => Seq2Seq.open(this.name, active.encoder, this.#backend, read));
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
    const generator = await this.#generation(active);
    return generator.next(text, (feeds) => this.#run(feeds, active), active);
  }

  /** How many tokens of a prompt a language model reads at a time: few where a GPU computes more of them wrongly. */
  async tokensAtOnce() {
    return (await this.#generation(this.#active)).piece;
  }

  /** What generation with an adapter needs, read when it is first asked for. @param {Active} active */
  #generation(active) {
    return this.#once(this.#generators, active, async (read) => {
      const { Generator } = await import("./generate.js");
      return Generator.open(this.manifest, this.name, active.encoder, this.#backend, read, (feeds) => this.#run(feeds, this.#base));
    });
  }

  /**
   * What is made once for all adapters with the same text; made again where that failed.
   *
   * @template T
   * @param {Map<string, Promise<T>>} made
   * @param {Active} active
   * @param {(read: (file: string) => Promise<string | null>) => Promise<T>} make  Reads files of the bundle, or the adapter's own.
   * @returns {Promise<T>}
   */
  #once(made, { own }, make) {
    const key = this.#texts.key(own);
    let found = made.get(key);
    if (found === undefined) {
      found = make((file) => this.#texts.read(file, own));
      made.set(key, found);
      found.catch(() => made.delete(key));
    }
    return found;
  }

  /** Free the session's memory; the runtime cannot be used afterwards. */
  async close() {
    await this.#last;
    await this.#session.release();
    await this.#decoder?.release();
    await this.#embedder.close();
  }
}
