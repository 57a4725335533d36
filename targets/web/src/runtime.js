/** A bundle in ONNX Runtime Web: adapters to swap, texts to classify. */

import * as ort from "onnxruntime-web/wasm";

import { checkAdapterFile, readAdapter } from "./adapter.js";
import { AdapterMismatchError, BundleError, InputError, UnknownAdapterError } from "./errors.js";
import { MANIFEST_NAME, findAdapter, findVariant, parseManifest } from "./manifest.js";
import { checkAdapters, slotSignature, slotTensors } from "./slots.js";
import { openSource, readChecked, sha256 } from "./source.js";
import { TextEncoder } from "./tokenizer.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").Variant} Variant
 * @typedef {import("./source.js").Source} Source
 * @typedef {import("./tokenizer.js").Text} Text
 * @typedef {{ label: string, score: number, probabilities: Record<string, number> }} Prediction
 * @typedef {Record<string, ort.Tensor>} Feeds
 * @typedef {{ name: string | null, scale: number, labels: string[] | null, feeds: Feeds }} Active
 * @typedef {{ data: Float32Array, dims: readonly number[] }} Output
 *
 * @typedef {object} OpenOptions
 * @property {string} [variant]  `fp32` by default, else the first there is.
 * @property {number} [threads]  Threads of the wasm backend; more than one needs a cross-origin isolated page. Default 1.
 *   ONNX Runtime Web reads it once: the first bundle opened on a page decides.
 * @property {(file: string, bytes: number, total: number) => void} [onProgress]  Told while files arrive, in bytes.
 */

/** ONNX Runtime Web's heap ends here, whatever the machine has. */
const HEAP_BYTES = 2 ** 32;
const MANIFEST_LIMIT = 64 << 20;

/**
 * Open a bundle for inference: by URL, or in Node by path.
 *
 * The manifest, the variant's files and every adapter's contract are checked first; adapters are fetched, and checked, when
 * they are first used.
 *
 * @param {string | URL} where
 * @param {OpenOptions} [options]
 * @returns {Promise<Runtime>}
 * @throws {BundleError} Where there is no bundle, its manifest is not valid, or a file was changed.
 * @throws {AdapterMismatchError} Where an adapter was made for another base.
 */
export async function openBundle(where, options = {}) {
  const source = openSource(where);
  const name = source.name.replace(/\/$/, "");
  const bytes = await source.read(MANIFEST_NAME, MANIFEST_LIMIT, () => {});
  if (bytes === null) throw new BundleError(`${name} is not a bundle: it holds no ${MANIFEST_NAME}. Make one with \`edgepeft export\`.`);
  const manifest = parseManifest(new TextDecoder().decode(bytes), `${name}/${MANIFEST_NAME}`);
  checkAdapters(manifest, name, await sha256(new globalThis.TextEncoder().encode(slotSignature(manifest))));
  const [variant, entry] = findVariant(manifest, name, options.variant);
  const graph = graphFile(name, variant, entry);
  const files = [graph, ...entry.data];
  const size = files.reduce((sum, file) => sum + fileEntry(manifest, file).bytes, 0);
  const held = entry.input_unpacked ? size * 8 : size; // 4 bits become 32
  if (held >= HEAP_BYTES) {
    throw new BundleError(`${name}: variant ${variant} takes ${held} bytes of memory; ONNX Runtime Web can address ${HEAP_BYTES}. Use a smaller one.`);
  }
  const { threads = 1, onProgress = () => {} } = options;
  if (threads > 1 && typeof process !== "undefined" && process.versions?.node) {
    throw new InputError(`ONNX Runtime Web runs with one thread in Node, found threads ${threads}; native onnxruntime runs with more`);
  }
  if (!Number.isInteger(threads) || threads < 1) throw new InputError(`threads must be a whole number from 1 on, found ${threads}`);
  const [model, ...data] = await Promise.all(files.map((file) => readChecked(source, file, fileEntry(manifest, file), onProgress)));
  const encoder = await readEncoder(source, manifest, name);
  const defaults = await readDefaults(source, manifest, name, entry);
  const session = await createSession(/** @type {Uint8Array} */ (model), entry, data, threads, `${name}/${graph}`);
  return new Runtime({ source, name, manifest, variant, session, encoder, defaults });
}

/** @param {string} name @param {string} variant @param {Variant} entry */
function graphFile(name, variant, entry) {
  if (entry.slots !== "overridable") return entry.file;
  if (entry.input_file !== null) return entry.input_file;
  throw new BundleError(
    `${name}: variant ${variant} has no graph whose slots are plain inputs, which ONNX Runtime Web needs. ` +
      "Write one with `edgepeft web prepare BUNDLE`.",
  );
}

/** @param {Manifest} manifest @param {string} file */
function fileEntry(manifest, file) {
  return /** @type {import("./manifest.js").FileEntry} */ (manifest.files[file]);
}

/** @param {Source} source @param {Manifest} manifest @param {string} name */
async function readEncoder(source, manifest, name) {
  const entry = manifest.files["tokenizer.json"];
  if (entry === undefined) return null;
  const config = manifest.files["tokenizer_config.json"];
  return new TextEncoder(
    await readChecked(source, "tokenizer.json", entry),
    config === undefined ? null : await readChecked(source, "tokenizer_config.json", config),
    manifest.max_length,
    name,
  );
}

/**
 * A feed for every slot that gives the base: rank 0, or the base's own numbers where the slot has some.
 *
 * @param {Source} source @param {Manifest} manifest @param {string} name @param {Variant} entry
 * @returns {Promise<Feeds>}
 */
async function readDefaults(source, manifest, name, entry) {
  /** @type {Feeds} */
  const feeds = Object.create(null);
  if (entry.slots === "none") return feeds;
  const file = manifest.slot_defaults;
  const held = file === null ? null : readAdapter(await readChecked(source, file, fileEntry(manifest, file)), `${name}/${file}`);
  for (const [tensor, shape] of slotTensors(manifest)) {
    const found = held?.tensors.get(tensor);
    const dims = found?.dims ?? shape.map((dim) => (typeof dim === "number" ? dim : dim === "adapter_batch" ? 1 : 0));
    if (!found && !dims.includes(0)) {
      throw new AdapterMismatchError(`${name}: slot ${tensor} has no default of rank 0, and ${file ?? "slot_defaults"} does not hold it`);
    }
    feeds[tensor] = new ort.Tensor("float32", found?.data ?? new Float32Array(0), dims);
  }
  return feeds;
}

/** @param {Uint8Array} model @param {Variant} entry @param {Uint8Array[]} data @param {number} threads @param {string} where */
async function createSession(model, entry, data, threads, where) {
  ort.env.wasm.numThreads = threads;
  try {
    return await ort.InferenceSession.create(model, {
      executionProviders: ["wasm"],
      // Weights that are stored in 4 bits become fp32 once, here; otherwise ONNX Runtime would unpack them in every run.
      ...(entry.input_unpacked ? { extra: { session: { disable_quant_qdq: "1" } } } : {}),
      externalData: entry.data.map((file, i) => ({ path: file.split("/").at(-1) ?? file, data: /** @type {Uint8Array} */ (data[i]) })),
    });
  } catch (error) {
    throw new BundleError(`ONNX Runtime Web cannot open ${where}: ${/** @type {Error} */ (error).message}`, { cause: error });
  }
}

/** One variant of a bundle in a session, and the adapter in use. Made by {@link openBundle}. */
export class Runtime {
  /** @type {Source} */ #source;
  /** @type {ort.InferenceSession} */ #session;
  /** @type {Active} */ #base;
  /** @type {Active} */ #active;
  /** @type {Map<string, Active>} */ #loaded = new Map();
  /** Runs one after the other: ONNX Runtime Web does not take two at a time. @type {Promise<unknown>} */ #last = Promise.resolve();
  /** @type {Promise<import("./generate.js").Generator> | null} */ #generator = null;
  #asked = 0;
  #applied = 0;

  /** @param {{ source: Source, name: string, manifest: Manifest, variant: string, session: ort.InferenceSession, encoder: TextEncoder | null, defaults: Feeds }} parts */
  constructor({ source, name, manifest, variant, session, encoder, defaults }) {
    this.#source = source;
    this.#session = session;
    this.#base = { name: null, scale: 1, labels: manifest.labels, feeds: defaults };
    this.#active = this.#base;
    /** Where the bundle is from. */
    this.name = name;
    this.manifest = manifest;
    /** The variant in the session. */
    this.variant = variant;
    this.encoder = encoder;
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
   * Swap to an adapter, or back to the base with `null`. A run that has begun ends with the adapter it began with; where a
   * call fails, the adapter in use stays.
   *
   * @param {string | null} adapter
   * @param {{ scale?: number }} [options]  `scale` multiplies the adapter's low-rank part.
   * @returns {Promise<this>}
   * @throws {UnknownAdapterError} Naming the adapters there are.
   * @throws {InputError} For a scale on an adapter that is not linear in one (DoRA, IA3).
   */
  async use(adapter, { scale = 1 } = {}) {
    const asked = ++this.#asked;
    const { merged } = this.manifest;
    if (merged !== null) {
      if (adapter !== null && adapter !== merged) throw new UnknownAdapterError(`${this.name} is merged with '${merged}'; it has no adapter '${adapter}'`);
      if (scale !== 1) throw new InputError(`${this.name} is merged with '${merged}', whose scale is fixed`);
      return this;
    }
    if (typeof scale !== "number" || !Number.isFinite(scale)) throw new InputError(`scale must be a finite number, found ${scale}`);
    let active = this.#base;
    if (adapter !== null) {
      active = this.#loaded.get(adapter) ?? (await this.#load(adapter));
      if (scale !== 1) active = this.#scaled(active, scale);
    }
    // Where two calls overlap, the later one wins, however long either took to fetch.
    if (asked > this.#applied) {
      this.#applied = asked;
      this.#active = active;
    }
    return this;
  }

  /** @param {string} adapter @returns {Promise<Active>} */
  async #load(adapter) {
    const entry = findAdapter(this.manifest, this.name, adapter);
    const where = `${this.name}/${entry.onnx_adapter}`;
    const file = readAdapter(await readChecked(this.#source, entry.onnx_adapter, fileEntry(this.manifest, entry.onnx_adapter)), where);
    checkAdapterFile(file, adapter, entry, where);
    /** @type {Feeds} */
    const feeds = Object.assign(Object.create(null), this.#base.feeds);
    for (const [name, { dims, data }] of file.tensors) feeds[name] = new ort.Tensor("float32", data, dims);
    const active = { name: adapter, scale: 1, labels: entry.labels, feeds };
    this.#loaded.set(adapter, active);
    return active;
  }

  /** @param {Active} active @param {number} scale @returns {Active} */
  #scaled(active, scale) {
    const entry = findAdapter(this.manifest, this.name, active.name ?? "");
    if (!entry.scalable) {
      throw new InputError(`adapter '${active.name}' (${entry.method}) cannot be scaled: its gains are not linear in a scale. Use scale 1.`);
    }
    const feeds = Object.assign(Object.create(null), active.feeds);
    const { linear, convolutions, embeddings } = this.manifest.slots;
    for (const { b } of [...linear, ...convolutions, ...embeddings]) {
      const tensor = feeds[b];
      feeds[b] = new ort.Tensor("float32", Float32Array.from(tensor.data, (x) => x * Math.fround(scale)), tensor.dims);
    }
    return { ...active, scale, feeds };
  }

  /**
   * Run token ids through the base with the adapter in use.
   *
   * @param {Record<string, number[][]>} inputs  Rows of equal length by input name: exactly the bundle's inputs.
   * @returns {Promise<Record<string, Output>>} Raw outputs by name.
   * @throws {InputError} Where names or shapes are wrong, or ONNX Runtime cannot run them.
   */
  async forward(inputs) {
    const active = this.#active;
    const tokens = this.#tensors(inputs);
    try {
      const found = await this.#run(tokens, active);
      return Object.fromEntries(
        Object.entries(found).map(([name, tensor]) => [name, { data: /** @type {Float32Array} */ (tensor.data), dims: tensor.dims }]),
      );
    } catch (error) {
      const shapes = Object.entries(tokens).map(([name, tensor]) => `${name} [${tensor.dims}]`);
      throw new InputError(
        `ONNX Runtime Web cannot run inputs of shape ${shapes.join(", ")} (this base takes token ids below its vocabulary size and at ` +
          `most ${this.manifest.max_length} tokens): ${/** @type {Error} */ (error).message ?? error}`,
        { cause: error },
      );
    }
  }

  /** @param {Feeds} feeds @param {Active} active @returns {Promise<Feeds>} */
  #run(feeds, active) {
    const run = this.#last.then(() => this.#session.run({ ...feeds, ...active.feeds }));
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
      tensors[name] = new ort.Tensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, width]);
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
   */
  async predict(texts, options) {
    const { labels } = this;
    return (await this.logits(texts, options)).map((row) => prediction(row, labels ?? row.map((_, i) => `LABEL_${i}`)));
  }

  /**
   * Go on with a text, or answer the messages of a chat, greedily: the most probable token each time. The adapter in use
   * when the call is made is used to the end.
   *
   * @param {string | import("./generate.js").Message[]} prompt
   * @param {import("./generate.js").GenerateOptions} [options]
   * @returns {Promise<import("./generate.js").Generation>}
   * @throws {InputError} For a bundle of another task, an empty prompt, or one as long as the context.
   */
  async generate(prompt, options = {}) {
    const active = this.#active;
    const generator = await this.#generation();
    return generator.generate(prompt, options, (feeds) => this.#run(feeds, active));
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
    return generator.next(text, (feeds) => this.#run(feeds, active));
  }

  /** What generation needs, read when it is first asked for; read again where that failed. */
  #generation() {
    /** @param {string} file */
    const read = async (file) => {
      const entry = this.manifest.files[file];
      return entry === undefined ? null : new TextDecoder().decode(await readChecked(this.#source, file, entry));
    };
    this.#generator ??= import("./generate.js")
      .then(({ Generator }) => Generator.open(this.manifest, this.name, this.encoder, read))
      .catch((error) => {
        this.#generator = null;
        throw error;
      });
    return this.#generator;
  }

  /** Free the session's memory; the runtime cannot be used afterwards. */
  async close() {
    await this.#last;
    await this.#session.release();
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
