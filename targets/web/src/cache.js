/** A decoder graph run step by step: its cache of keys and values, and what an adapter puts before the sequence. */

import { BundleError } from "./errors.js";
import { emptyHalves } from "./halves.js";

/**
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./backend.js").Tensor} Tensor
 * @typedef {import("./manifest.js").GraphInput} GraphInput
 * @typedef {(feeds: Feeds) => Promise<Feeds>} Run  One run of the graph with the adapter that was in use.
 */

export const PAST = /^past_key_values\.\d+\.(key|value)$/;
/** What is fed beside the cache. */
const FED = ["input_ids", "attention_mask", "position_ids", "logits_from"];
/** A prompt is fed in pieces of this many tokens: attention scores take heads x 512 x length floats. */
const PIECE = 512;
/** And of this many where a GPU computes longer ones wrongly. */
const SMALL_PIECE = 16;
/** Long enough that every way to compute attention that ONNX Runtime chooses by length is taken. */
const CHECKED_TOKENS = 100;
/**
 * Of the logits' root mean square over all these tokens: two orders of a sum differ by 1e-6, in float16 by 7e-3, attention that is
 * computed wrongly by 0.14 and more.
 */
const CHECKED_TOLERANCE = 3e-2;
/** Of a large vocabulary every so many-th is looked at. */
const CHECKED_LOGITS = 4096;

/**
 * The cache inputs of a causal language model's graph.
 *
 * @param {GraphInput[]} inputs @param {string} name
 * @throws {BundleError} For a graph that generation does not know.
 */
export function cacheInputs(inputs, name) {
  const past = inputs.filter((input) => PAST.test(input.name));
  const unknown = inputs.filter((input) => !PAST.test(input.name) && !FED.includes(input.name));
  if (!past.length || unknown.length || past.some(({ dtype }) => dtype !== "float" && dtype !== "float32")) {
    const names = inputs.map((input) => input.name);
    throw new BundleError(`${name}: generation needs a graph with a float32 cache; this one takes ${names.slice(0, 6).join(", ")}, …`);
  }
  return past;
}

/** One sequence's keys and values, as the last run returned them. */
export class Cache {
  #backend;
  #run;
  #inputs;
  /** @type {Feeds} */ #past;
  #length;

  /**
   * @param {Backend} backend
   * @param {GraphInput[]} inputs  Of the graph.
   * @param {Run} run
   * @param {Feeds | null} prefix  States that stand before the sequence, `[1, heads, length, head_dim]` by cache input.
   */
  constructor(backend, inputs, run, prefix) {
    this.#backend = backend;
    this.#run = run;
    this.#inputs = new Set(inputs.map((input) => input.name));
    this.#past =
      prefix ??
      Object.fromEntries(
        inputs
          .filter((input) => PAST.test(input.name))
          .map(({ name, shape }) => [name, backend.tensor("float32", new Float32Array(0), [1, Number(shape[1]), 0, Number(shape[3])])]),
      );
    this.#length = prefix === null ? 0 : (Object.values(prefix)[0]?.dims[2] ?? 0);
  }

  /**
   * Feed a prompt, in pieces; the logits after its last token, `null` where `ended` says so in between.
   *
   * @param {number[]} tokens @param {number} piece @param {() => boolean} [ended]
   * @returns {Promise<Float32Array | null>}
   */
  async prefill(tokens, piece, ended = () => false) {
    let logits = null;
    for (let at = 0; at < tokens.length; at += piece) {
      if (ended()) return null;
      logits = await this.feed(tokens.slice(at, at + piece));
    }
    return logits;
  }

  /** Feed tokens; the logits after the last of them, `[vocabulary]`. @param {number[]} tokens @returns {Promise<Float32Array>} */
  async feed(tokens) {
    return /** @type {Float32Array} */ ((await this.verify(tokens, tokens.length - 1)).at(-1));
  }

  /** Feed tokens; the logits after each of them from the `first` on. @param {number[]} tokens @param {number} [first] @returns {Promise<Float32Array[]>} */
  async verify(tokens, first = 0) {
    const count = tokens.length;
    /** @param {number} length @param {(i: number) => number} value */
    const row = (length, value) =>
      this.#backend.tensor(
        "int64",
        BigInt64Array.from({ length }, (_, i) => BigInt(value(i))),
        [1, length],
      );
    /** @type {Feeds} */
    const feeds = { input_ids: row(count, (i) => tokens[i] ?? 0), attention_mask: row(this.#length + count, () => 1), ...this.#past };
    if (this.#inputs.has("position_ids")) feeds.position_ids = row(count, (i) => this.#length + i);
    // Of a prompt only the last token's logits are wanted: a vocabulary's width for each token is most of its cost.
    if (this.#inputs.has("logits_from")) feeds.logits_from = this.#backend.tensor("int64", BigInt64Array.of(BigInt(first)), [1]);
    const found = await this.#run(feeds);
    this.#past = Object.fromEntries(Object.keys(this.#past).map((name) => [name, /** @type {Tensor} */ (found[name.replace("past_key_values.", "present.")])]));
    this.#length += count;
    const logits = /** @type {Tensor} */ (found.logits);
    const [data, width] = [/** @type {Float32Array} */ (logits.data), logits.dims.at(-1) ?? 1];
    return Array.from({ length: count - first }, (_, i) =>
      data.subarray(data.length - (count - first - i) * width, data.length - (count - first - i - 1) * width),
    );
  }

  /** Forget the last tokens that were fed. @param {number} count */
  forget(count) {
    if (!count) return;
    this.#length -= count;
    this.#past = Object.fromEntries(
      Object.entries(this.#past).map(([name, tensor]) => {
        const [, heads = 0, places = 0, size = 0] = tensor.dims;
        const [from, kept] = [/** @type {Float32Array} */ (tensor.data), places - count];
        const numbers = heads * kept * size;
        const type = tensor.type === "float16" ? "float16" : "float32";
        const data = /** @type {Float32Array} */ (type === "float16" ? emptyHalves(numbers) : new Float32Array(numbers));
        for (let head = 0; head < heads; head += 1) data.set(from.subarray(head * places * size, (head * places + kept) * size), head * kept * size);
        return [name, this.#backend.tensor(type, data, [1, heads, kept, size])];
      }),
    );
  }
}

/**
 * How many tokens of a prompt are fed at a time. On WebGPU a prompt is read in one piece and in small ones, and the small ones
 * are kept to where the two differ: of 32 tokens on, ONNX Runtime Web 1.30 computes attention in another way there, which gives
 * wrong numbers on SwiftShader.
 *
 * @param {Backend} backend @param {GraphInput[]} inputs @param {number | null} context @param {Run} run  With the base.
 * @returns {Promise<number>}
 */
export async function pieceSize(backend, inputs, context, run) {
  if (backend.device === "wasm") return PIECE;
  const tokens = Array.from({ length: Math.min(CHECKED_TOKENS, (context ?? Infinity) - 1) }, (_, i) => i);
  /** Logits after each token. @param {number} piece */
  const read = async (piece) => {
    const cache = new Cache(backend, inputs, run, null);
    const found = [];
    for (let at = 0; at < tokens.length; at += piece)
      for (const row of await cache.verify(tokens.slice(at, at + piece))) found.push(row.filter((_, i) => i % Math.ceil(row.length / CHECKED_LOGITS) === 0));
    return found;
  };
  const [whole, parts] = [await read(PIECE), await read(SMALL_PIECE)];
  let [off, all] = [0, 0];
  for (const [i, row] of parts.entries()) {
    for (const [j, x] of row.entries()) {
      off += (x - (whole[i]?.[j] ?? NaN)) ** 2;
      all += x ** 2;
    }
  }
  const same = off <= CHECKED_TOLERANCE ** 2 * all;
  return same ? PIECE : SMALL_PIECE;
}
