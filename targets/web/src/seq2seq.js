/** Writing with an encoder-decoder: one run of the encoder, then one of the decoder for each token, greedily. */

import { BundleError, InputError } from "./errors.js";
import { endTokens, stopsOf } from "./generate.js";
import { decoder, write } from "./loop.js";
import { Pieces } from "./pieces.js";
import { GREEDY, Sampler } from "./sampling.js";

/**
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./backend.js").Tensor} Tensor
 * @typedef {import("./cache.js").Run} Run
 * @typedef {import("./generate.js").Generation} Generation
 * @typedef {import("./generate.js").GenerateOptions} GenerateOptions
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 */

const PAST = "past_key_values.";
const PRESENT = "present.";
const NEW_TOKENS = 64;
/** What greedy writing of one text does not take. */
const OTHERS = /** @type {const} */ ([
  "chat",
  "draft",
  "system",
  "tools",
  "documents",
  "enableThinking",
  "chatTemplateKwargs",
  "topK",
  "topP",
  "repetitionPenalty",
  "seed",
]);

/** What a bundle needs to write, read once. */
export class Seq2Seq {
  /**
   * @param {string} name @param {TextEncoder | null} encoder @param {Backend} backend
   * @param {(file: string) => Promise<string | null>} read  A file of the bundle, checked.
   */
  static async open(name, encoder, backend, read) {
    if (encoder === null) throw new BundleError(`${name} holds no tokenizer.json, which writing texts needs`);
    const { decoder_start_token_id: start, eos_token_id: eos } = await readSettings(name, read);
    if (!Number.isSafeInteger(start)) throw new BundleError(`${name}/config.json has no decoder_start_token_id`);
    return new Seq2Seq(encoder, backend, start, [eos ?? []].flat());
  }

  /** @param {TextEncoder} encoder @param {Backend} backend @param {number} start @param {number[]} ends */
  constructor(encoder, backend, start, ends) {
    this.tokenizer = encoder.tokenizer;
    this.backend = backend;
    this.start = start;
    this.ends = ends;
  }

  /**
   * @param {Feeds} inputs  One text's tokens.
   * @param {GenerateOptions} options
   * @param {Run} encode  One run of the encoder with the adapter that was in use.
   * @param {Run} decode  The same of the decoder.
   * @param {readonly string[]} names  The decoder's inputs.
   * @returns {Promise<Generation>}
   */
  async generate(inputs, options, encode, decode, names) {
    const { signal, onText = () => {}, maxNewTokens = NEW_TOKENS } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) throw new InputError(`maxNewTokens must be a whole number from 1 on, found ${maxNewTokens}`);
    const unknown = OTHERS.find((option) => options[option] !== undefined) ?? (options.temperature ? "temperature" : undefined);
    if (unknown !== undefined) throw new InputError(`an encoder-decoder writes greedily here: leave ${unknown} out`);
    const { texts, tokens: stops } = stopsOf(options.stop, this.tokenizer);
    const ends = [...this.ends, ...endTokens(options.eos, this.tokenizer)];
    const pieces = new Pieces(decoder(this.tokenizer), [], texts);
    const begin = performance.now();
    const { input_ids: ids, attention_mask: mask } = /** @type {{ input_ids: Tensor, attention_mask: Tensor }} */ (/** @type {unknown} */ (inputs));
    let cache = begun(await encode(inputs), names, this.backend);
    /** @param {number} token @returns {Promise<Float32Array>} */
    const feed = async (token) => {
      const input_ids = this.backend.tensor("int64", BigInt64Array.of(BigInt(token)), [1, 1]);
      const found = await decode({ input_ids, encoder_attention_mask: mask, ...cache });
      cache = { ...cache, ...renamed(found) };
      const logits = /** @type {Tensor} */ (found.logits);
      return /** @type {Float32Array} */ (logits.data).subarray(-(logits.dims.at(-1) ?? 1));
    };
    const logits = await feed(this.start);
    const prefillMs = performance.now() - begin;
    const sampler = new Sampler(GREEDY, []);
    const written = await write({ logits, feed: async ([token = 0]) => [await feed(token)], sampler, pieces, ends, stops, room: maxNewTokens, onText, signal });
    return { ...written, promptTokens: ids.dims[1] ?? 0, prefillMs };
  }
}

/**
 * The caches before the first token: the encoder's keys and values, and no tokens of the decoder's own, which has as many
 * heads of the same size.
 *
 * @param {Feeds} encoded @param {readonly string[]} names  The decoder's inputs. @param {Backend} backend
 * @returns {Feeds}
 */
export function begun(encoded, names, backend) {
  const across = renamed(encoded);
  const own = names.filter((name) => name.startsWith(PAST) && name.includes(".decoder."));
  return {
    ...across,
    ...Object.fromEntries(
      own.map((name) => {
        const [, heads = 0, , size = 0] = across[name.replace(".decoder.", ".encoder.")]?.dims ?? [];
        return [name, backend.tensor("float32", new Float32Array(0), [1, heads, 0, size])];
      }),
    ),
  };
}

/**
 * What `config.json` says, and over it what `generation_config.json` does.
 *
 * @param {string} name  Where the bundle is from. @param {(file: string) => Promise<string | null>} read  A file of the bundle, checked.
 * @returns {Promise<Record<string, any>>}
 */
export async function readSettings(name, read) {
  try {
    return { ...JSON.parse((await read("config.json")) ?? "{}"), ...JSON.parse((await read("generation_config.json")) ?? "{}") };
  } catch (error) {
    throw new BundleError(`${name}: config.json or generation_config.json is not JSON: ${/** @type {Error} */ (error).message}`, { cause: error });
  }
}

/** What a run returned of keys and values, by the names of inputs. @param {Feeds} found @returns {Feeds} */
export function renamed(found) {
  const caches = Object.entries(found).filter(([name]) => name.startsWith(PRESENT));
  return Object.fromEntries(caches.map(([name, tensor]) => [PAST + name.slice(PRESENT.length), tensor]));
}
