/** Embeddings of texts: prompts, limits, pooling by the bundle's own graphs, cuts; as edgepeft's Python runtime does. */

import { BundleError, InputError, NonFiniteError } from "./errors.js";
import { readChecked } from "./source.js";

/**
 * @typedef {import("./active.js").Active} Active
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").InferenceSession} InferenceSession
 * @typedef {import("./manifest.js").Embedding} Embedding
 * @typedef {import("./manifest.js").FileEntry} FileEntry
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./runtime.js").Output} Output
 * @typedef {import("./source.js").Source} Source
 * @typedef {{ says: Embedding, entry: FileEntry }} OwnEmbedding  With what its graph's file is; stays with a view of an adapter.
 *
 * @typedef {object} EmbedOptions
 * @property {string} [prompt]  Put before each text, in place of the model's own; `""` for none.
 * @property {string} [promptName]  The name of one of the model's prompts.
 * @property {number} [dim]  Keep so many numbers, of models trained for it (Matryoshka).
 * @property {boolean} [normalize]  Bring the result to length 1, after the cut.
 * @property {number} [batchSize]
 */

/**
 * How an adapter (`null`: the base) embeds texts: its own way, else the base's; `null` for the mean over the tokens.
 *
 * @param {Manifest} manifest @param {string | null} name
 * @returns {OwnEmbedding | null}
 */
export function embeddingOf(manifest, name) {
  const says = (name === null ? null : manifest.adapters[name]?.embedding) ?? manifest.embedding;
  return says ? { says, entry: /** @type {FileEntry} */ (manifest.files[says.graph]) } : null;
}

/** How a blend embeds texts: as the adapter `head` does, else as all of them do. @param {Manifest} manifest @param {Record<string, number>} weights @param {string | undefined} head */
export function blendEmbedding(manifest, weights, head) {
  if (head !== undefined) return embeddingOf(manifest, head);
  const names = Object.keys(weights);
  const ways = names.map((name) => embeddingOf(manifest, name));
  // Two files that hold the same graph are one way to embed.
  const alike = ways.map((way) => way && JSON.stringify({ ...way.says, graph: way.entry.sha256 }));
  const other = alike.findIndex((way) => way !== alike[0]);
  if (other > 0) {
    throw new InputError(
      `adapters '${names[0]}' and '${names[other]}' embed texts differently (pooling, prompts or limits), which has no weighted sum. ` +
        `Say whose way to take, for example { head: "${names[0]}" }.`,
    );
  }
  return ways[0] ?? null;
}

/** Sessions over the graphs of a bundle's embeddings, each made when it is first used. */
export class Embedder {
  /** @type {Map<string, Promise<InferenceSession>>} */ #sessions = new Map();

  /** @param {Source} source @param {string} name @param {Backend} backend */
  constructor(source, name, backend) {
    this.source = source;
    this.name = name;
    this.backend = backend;
  }

  /** By the hash of the graph: one that is open stays what it is when the bundle is read again. @param {OwnEmbedding} own @returns {Promise<InferenceSession>} */
  #session({ says, entry }) {
    const made = this.#sessions.get(entry.sha256) ?? this.#open(says.graph, entry);
    this.#sessions.set(entry.sha256, made);
    return made.catch((error) => {
      this.#sessions.delete(entry.sha256); // fetched again where it is asked for again
      throw error;
    });
  }

  /** @param {string} graph @param {FileEntry} entry */
  async #open(graph, entry) {
    return this.backend.session(await readChecked(this.source, graph, entry), {}, 1, `${this.name}/${graph}`);
  }

  /**
   * Embeddings of texts, a row each.
   *
   * @param {Manifest} manifest
   * @param {Active} active  The adapter in use.
   * @param {string[]} texts
   * @param {EmbedOptions} options
   * @param {(inputs: Record<string, number[][]>) => Promise<Record<string, Output>>} forward  Runs the base with the adapter in use.
   * @returns {Promise<number[][]>}
   */
  async embed(manifest, active, texts, options, forward) {
    const { batchSize = 32 } = options;
    const { encoder, embedding: own = null } = active;
    const embedding = own?.says ?? null;
    if (active.head.task !== "feature-extraction") throw new InputError(`${this.name} is for ${active.head.task}; it does not embed texts`);
    if (encoder === null) throw new BundleError(`${this.name} holds no tokenizer.json, so it runs on token ids only: use forward`);
    if (!Number.isInteger(batchSize) || batchSize < 1) throw new InputError(`batchSize must be a whole number from 1 on, found ${batchSize}`);
    if (!Array.isArray(texts) || !texts.length) throw new InputError("no texts were given: pass a list of texts");
    const prompt = promptOf(embedding, options);
    if (prompt && texts.some((text) => typeof text !== "string")) {
      throw new InputError('a prompt is put before one text, not before a pair of texts: embed pairs with { prompt: "" }');
    }
    const limit = Math.min(embedding?.max_length ?? Infinity, manifest.max_length ?? Infinity);
    const cut = Number.isFinite(limit) ? limit : null;
    const skipped = embedding === null || embedding.include_prompt || !prompt ? 0 : encoder.promptLength(prompt, cut);
    const who = active.name === null ? "the base" : `adapter '${active.name}'`;
    const rows = [];
    for (let start = 0; start < texts.length; start += batchSize) {
      const part = texts.slice(start, start + batchSize).map((text) => (prompt ? prompt + text : text));
      const { ids, mask, types } = encoder.encodeBatch(part, cut);
      const all = /** @type {Record<string, number[][]>} */ ({ input_ids: ids, attention_mask: mask, token_type_ids: types });
      const taken = Object.fromEntries(Object.entries(all).filter(([name]) => manifest.inputs.some((input) => input.name === name)));
      const { last_hidden_state: states } = await forward(taken);
      if (states === undefined) throw new BundleError(`${this.name}: the graph has no output named last_hidden_state`);
      for (const row of await this.#pooled(own, states, mask, skipped)) {
        if (!row.every(Number.isFinite))
          throw new NonFiniteError(`${this.name}: ${who} gives embeddings that are not finite numbers; try another variant or adapter`);
        rows.push(cutRow(row, options));
      }
    }
    return rows;
  }

  /** @param {OwnEmbedding | null} own @param {Output} states @param {number[][]} mask @param {number} skipped @returns {Promise<number[][]>} */
  async #pooled(own, states, mask, skipped) {
    if (own === null) return means(states, mask);
    const embedding = own.says;
    const [rows = 0, tokens = 0] = states.dims;
    const session = await this.#session(own);
    const feeds = {
      last_hidden_state: this.backend.tensor("float32", Float32Array.from(states.data), states.dims),
      attention_mask: this.backend.tensor("int64", BigInt64Array.from(mask.flat(), BigInt), [rows, tokens]),
      ...(embedding.include_prompt ? {} : { prompt_length: this.backend.tensor("int64", BigInt64Array.of(BigInt(skipped)), [1]) }),
    };
    /** @type {Float32Array} */
    let data;
    try {
      data = /** @type {Float32Array} */ ((await session.run(feeds)).sentence_embedding?.data);
    } catch (error) {
      throw new BundleError(`${this.name}/${embedding.graph} cannot embed hidden states [${states.dims}]: ${/** @type {Error} */ (error).message ?? error}`, {
        cause: error,
      });
    }
    if (data?.length !== rows * embedding.dimension) {
      throw new BundleError(
        `${this.name}/${embedding.graph} gives ${data?.length ?? 0} numbers for ${rows} texts; the manifest says ${embedding.dimension} a text`,
      );
    }
    return mask.map((_, row) => Array.from(data.subarray(row * embedding.dimension, (row + 1) * embedding.dimension)));
  }

  /** Free the sessions. */
  async close() {
    for (const made of this.#sessions.values()) await (await made.catch(() => null))?.release();
  }
}

/** @param {Embedding | null} embedding @param {EmbedOptions} options @returns {string} */
function promptOf(embedding, { prompt, promptName }) {
  if (prompt !== undefined) return prompt;
  const prompts = embedding?.prompts ?? {};
  const name = promptName ?? embedding?.default_prompt;
  if (name === undefined || name === null) return "";
  const found = Object.hasOwn(prompts, name) ? prompts[name] : undefined;
  if (found === undefined) throw new InputError(`there is no prompt '${name}' here; known are: ${Object.keys(prompts).join(", ") || "none"}`);
  return found;
}

/** The mean over each row's tokens. @param {Output} states @param {number[][]} mask @returns {number[][]} */
function means({ data, dims }, mask) {
  const [, tokens = 0, hidden = 0] = dims;
  return mask.map((row, place) => {
    const count = Math.max(
      1e-9,
      row.reduce((sum, one) => sum + one, 0),
    );
    const total = Array(hidden).fill(0);
    for (let token = 0; token < tokens; token++) {
      if (!row[token]) continue;
      const at = (place * tokens + token) * hidden;
      for (let i = 0; i < hidden; i++) total[i] += data[at + i] ?? 0;
    }
    return total.map((sum) => sum / count);
  });
}

/** @param {number[]} row @param {EmbedOptions} options */
function cutRow(row, { dim, normalize = false }) {
  if (dim !== undefined && !(Number.isInteger(dim) && dim >= 1 && dim <= row.length)) {
    throw new InputError(`dim must be a whole number from 1 to ${row.length}, the numbers of an embedding; found ${dim}`);
  }
  const kept = dim === undefined ? row : row.slice(0, dim);
  if (!normalize) return kept;
  const length = Math.max(Math.hypot(...kept), 1e-12);
  return kept.map((x) => x / length);
}
