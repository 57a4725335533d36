/** Greedy generation with a causal language model: cache, chat template, text that comes piece by piece. */

import { Template } from "@huggingface/jinja";
import * as ort from "onnxruntime-web/wasm";

import { BundleError, InputError } from "./errors.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 * @typedef {Record<string, ort.Tensor>} Feeds
 * @typedef {{ role: string, content: string }} Message
 *
 * @typedef {object} GenerateOptions
 * @property {number} [maxNewTokens]  What `generation_config.json` says, else 256; the context limits it in any case.
 * @property {string[]} [stop]  Texts at which to stop; they are not part of the answer.
 * @property {boolean} [chat]  Whether a text goes through the chat template as a user's message; by default it does where
 *   the bundle has one. Messages always do.
 * @property {string} [system]  Put before such a text.
 * @property {(piece: string) => void} [onText]  Told each piece as it comes; no piece ends within a character.
 * @property {AbortSignal} [signal]  Ends the generation after the token under way.
 *
 * @typedef {object} Generation
 * @property {string} text
 * @property {number[]} tokens  With the one that ended it.
 * @property {number} promptTokens
 * @property {"eos" | "length" | "stop" | "cancelled"} finish
 * @property {number} prefillMs  Until the first token is known.
 * @property {number | null} tokensPerSecond  Of the tokens after the first.
 */

const NEW_TOKENS = 256;
/** A prompt is fed in pieces of this many tokens: attention scores take heads x 512 x length floats. */
const CHUNK = 512;
const PAST = /^past_key_values\.\d+\.(key|value)$/;
const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const CONTEXT = 6;
const UNFINISHED = "\ufffd";

/** What a bundle needs to generate, read once. */
export class Generator {
  /**
   * @param {Manifest} manifest
   * @param {string} name
   * @param {TextEncoder | null} encoder
   * @param {(file: string) => Promise<string | null>} read  A file of the bundle, checked.
   */
  static async open(manifest, name, encoder, read) {
    if (manifest.task !== "text-generation") {
      throw new InputError(`${name} is for ${manifest.task}; generating needs a text-generation bundle (a causal language model)`);
    }
    if (encoder === null) throw new BundleError(`${name} holds no tokenizer.json, which generation from text needs`);
    /** @param {string} file @returns {Promise<Record<string, any>>} */
    const json = async (file) => {
      const text = await read(file);
      try {
        return text === null ? {} : JSON.parse(text);
      } catch (error) {
        throw new BundleError(`${name}/${file} is not JSON: ${/** @type {Error} */ (error).message}`, { cause: error });
      }
    };
    const [config, generation, tokenizer] = [await json("config.json"), await json("generation_config.json"), await json("tokenizer_config.json")];
    const several = Array.isArray(tokenizer.chat_template) ? tokenizer.chat_template.find(({ name: of }) => of === "default")?.template : tokenizer.chat_template;
    const template = (await read("chat_template.jinja")) ?? several ?? null;
    const special = Object.fromEntries(
      SPECIAL.map((key) => [key, tokenizer[key]?.content ?? tokenizer[key]]).filter(([, value]) => typeof value === "string"),
    );
    const eos = [generation.eos_token_id ?? config.eos_token_id ?? []].flat();
    return new Generator(manifest, name, encoder, { template, special, eos, newTokens: generation.max_new_tokens ?? null });
  }

  /**
   * @param {Manifest} manifest @param {string} name @param {TextEncoder} encoder
   * @param {{ template: string | null, special: Record<string, string>, eos: number[], newTokens: number | null }} settings
   */
  constructor(manifest, name, encoder, settings) {
    this.manifest = manifest;
    this.name = name;
    this.tokenizer = encoder.tokenizer;
    this.settings = settings;
    this.inputs = new Set(manifest.inputs.map((input) => input.name));
    this.past = manifest.inputs.filter((input) => PAST.test(input.name));
    const unknown = [...this.inputs].filter((input) => !PAST.test(input) && !["input_ids", "attention_mask", "position_ids", "logits_from"].includes(input));
    if (!this.past.length || unknown.length || this.past.some(({ dtype }) => dtype !== "float" && dtype !== "float32")) {
      throw new BundleError(`${name}: generation needs a graph with a float32 cache; this one takes ${[...this.inputs].slice(0, 6).join(", ")}, …`);
    }
  }

  /** @param {string | Message[]} prompt @param {GenerateOptions} options @returns {number[]} */
  #encode(prompt, { chat = this.settings.template !== null, system }) {
    if (typeof prompt === "string") {
      if (!prompt) throw new InputError("the prompt is empty; give at least one character");
      if (!chat) {
        if (system !== undefined) throw new InputError("a system message needs the chat template, and this prompt is given as it is");
        return this.#fits(this.#ids(prompt, true));
      }
      prompt = [...(system === undefined ? [] : [{ role: "system", content: system }]), { role: "user", content: prompt }];
    }
    if (!Array.isArray(prompt) || !prompt.length || prompt.some((m) => typeof m?.role !== "string" || typeof m?.content !== "string")) {
      throw new InputError("a prompt is a text, or a list of messages with a role (system, user, assistant) and content");
    }
    if (this.settings.template === null) {
      throw new InputError(`${this.name} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); give a plain prompt with chat: false`);
    }
    let text;
    try {
      text = new Template(this.settings.template).render({ messages: prompt, tools: null, documents: null, add_generation_prompt: true, ...this.settings.special });
    } catch (error) {
      throw new InputError(`the chat template of ${this.name} cannot render these messages: ${/** @type {Error} */ (error).message}. Change them, or give a plain prompt with chat: false.`, { cause: error });
    }
    // The template writes the special tokens itself.
    return this.#fits(this.#ids(text, false));
  }

  /** @param {string} text @param {boolean} special */
  #ids(text, special) {
    if (/\p{Surrogate}/u.test(text)) throw new InputError(`${JSON.stringify(text)} is not a text (valid Unicode)`);
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids;
  }

  /** @param {number[]} tokens */
  #fits(tokens) {
    const limit = this.manifest.max_length;
    if (!tokens.length) throw new InputError("the prompt has no tokens; give at least one word");
    if (limit !== null && tokens.length >= limit) {
      throw new InputError(`the prompt has ${tokens.length} tokens; ${this.name} takes at most ${limit}, prompt and answer together. Shorten it.`);
    }
    return tokens;
  }

  /**
   * The logits of the token after a text.
   *
   * @param {string} text
   * @param {(feeds: Feeds) => Promise<Feeds>} run
   * @returns {Promise<Float32Array>}
   */
  async next(text, run) {
    const ids = this.#encode(text, { chat: false });
    const cache = new Cache(this.past, this.inputs, run);
    for (let at = 0; at < ids.length; at += CHUNK) await cache.feed(ids.slice(at, at + CHUNK));
    return cache.logits;
  }

  /**
   * @param {string | Message[]} prompt
   * @param {GenerateOptions} options
   * @param {(feeds: Feeds) => Promise<Feeds>} run  One run with the adapter that was in use.
   * @returns {Promise<Generation>}
   */
  async generate(prompt, options, run) {
    const { stop = [], signal, onText = () => {} } = options;
    if (!Array.isArray(stop) || stop.some((text) => typeof text !== "string" || !text)) {
      throw new InputError(`a stop string must be a text of at least one character, found ${JSON.stringify(stop)}`);
    }
    const wanted = options.maxNewTokens ?? this.settings.newTokens ?? NEW_TOKENS;
    if (!Number.isInteger(wanted) || wanted < 1) throw new InputError(`maxNewTokens must be a whole number from 1 on, found ${wanted}`);
    const ids = this.#encode(prompt, options);
    const room = Math.min(wanted, (this.manifest.max_length ?? Infinity) - ids.length);
    const begin = performance.now();
    const cache = new Cache(this.past, this.inputs, run);
    let next = 0;
    for (let at = 0; at < ids.length; at += CHUNK) {
      if (signal?.aborted) return { text: "", tokens: [], promptTokens: ids.length, finish: "cancelled", prefillMs: performance.now() - begin, tokensPerSecond: null };
      next = await cache.feed(ids.slice(at, at + CHUNK));
    }
    const first = performance.now();
    /** @param {number[]} tokens */
    const decode = (tokens) => (tokens.length ? this.tokenizer.decode(tokens, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "");
    const pieces = new Pieces(decode, ids, stop);
    /** @type {Generation["finish"]} */
    let finish = "length";
    for (;;) {
      if (this.settings.eos.includes(next)) {
        finish = "eos";
        pieces.tokens.push(next);
        break;
      }
      const piece = pieces.push(next);
      if (piece) onText(piece);
      if (pieces.stopped) finish = "stop";
      else if (signal?.aborted) finish = "cancelled";
      if (pieces.stopped || signal?.aborted || pieces.tokens.length >= room) break;
      next = await cache.feed([next]);
    }
    const seconds = (performance.now() - first) / 1e3;
    const rest = pieces.flush();
    if (rest) onText(rest);
    const steps = pieces.tokens.length - 1;
    return {
      text: pieces.text,
      tokens: pieces.tokens,
      promptTokens: ids.length,
      finish,
      prefillMs: first - begin,
      tokensPerSecond: steps > 0 ? steps / seconds : null,
    };
  }
}

/** One sequence's keys and values, as the last run returned them. */
class Cache {
  /** @type {Feeds} */ #past;
  #length = 0;
  /** Of the last token fed. */
  logits = new Float32Array(0);

  /** @param {import("./manifest.js").GraphInput[]} past @param {Set<string>} inputs @param {(feeds: Feeds) => Promise<Feeds>} run */
  constructor(past, inputs, run) {
    this.inputs = inputs;
    this.run = run;
    this.#past = Object.fromEntries(
      past.map(({ name, shape }) => [name, new ort.Tensor("float32", new Float32Array(0), [1, Number(shape[1]), 0, Number(shape[3])])]),
    );
  }

  /** Feed tokens; the most probable next one. @param {number[]} tokens @returns {Promise<number>} */
  async feed(tokens) {
    const count = tokens.length;
    /** @param {number} length @param {(i: number) => number} value */
    const row = (length, value) => new ort.Tensor("int64", BigInt64Array.from({ length }, (_, i) => BigInt(value(i))), [1, length]);
    /** @type {Feeds} */
    const feeds = { input_ids: row(count, (i) => tokens[i] ?? 0), attention_mask: row(this.#length + count, () => 1), ...this.#past };
    if (this.inputs.has("position_ids")) feeds.position_ids = row(count, (i) => this.#length + i);
    // Only the last token's logits are wanted: a vocabulary's width for each token of a prompt is most of its cost.
    if (this.inputs.has("logits_from")) feeds.logits_from = new ort.Tensor("int64", BigInt64Array.of(BigInt(count - 1)), [1]);
    const found = await this.run(feeds);
    this.#past = Object.fromEntries(
      Object.keys(this.#past).map((name) => [name, /** @type {ort.Tensor} */ (found[name.replace("past_key_values.", "present.")])]),
    );
    this.#length += count;
    const logits = /** @type {ort.Tensor} */ (found.logits);
    const width = logits.dims.at(-1) ?? 1;
    this.logits = /** @type {Float32Array<ArrayBuffer>} */ (logits.data).subarray(-width);
    return argmax(this.logits);
  }
}

/** The first of the largest, as numpy's argmax. @param {Float32Array} values */
function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (/** @type {number} */ (values[i]) > /** @type {number} */ (values[best])) best = i;
  return best;
}

/** Turns tokens into pieces of text that never split a character or a stop string. */
export class Pieces {
  /** @type {number[]} */ tokens = [];
  text = "";
  stopped = false;
  #ids;
  #start = 0;
  #read;
  #held = "";

  /** @param {(tokens: number[]) => string} decode @param {number[]} prompt @param {string[]} stop */
  constructor(decode, prompt, stop) {
    this.decode = decode;
    this.stop = stop;
    // Some tokenizers drop a text's leading space: the first piece is decoded after the prompt's last tokens.
    this.#ids = prompt.slice(-CONTEXT);
    this.#read = this.#ids.length;
  }

  /** What a token adds to the text, if anything yet. @param {number} token */
  push(token) {
    this.tokens.push(token);
    this.#ids.push(token);
    const fresh = this.#fresh();
    if (fresh.endsWith(UNFINISHED)) return "";
    [this.#start, this.#read] = [this.#read, this.#ids.length];
    return this.#release(fresh, false);
  }

  /** What was held back; nothing after a stop string. */
  flush() {
    return this.stopped ? "" : this.#release(this.#fresh(), true);
  }

  #fresh() {
    const before = this.decode(this.#ids.slice(this.#start, this.#read));
    return this.decode(this.#ids.slice(this.#start)).slice(before.length);
  }

  /** @param {string} fresh @param {boolean} last */
  #release(fresh, last) {
    const whole = this.#held + fresh;
    const places = this.stop.map((text) => whole.indexOf(text)).filter((place) => place >= 0);
    let out = whole;
    if (places.length) {
      this.stopped = true;
      out = whole.slice(0, Math.min(...places));
    } else if (!last) {
      out = whole.slice(0, whole.length - Math.max(0, ...this.stop.map((text) => overlap(whole, text))));
    }
    this.#held = places.length ? "" : whole.slice(out.length);
    this.text += out;
    return out;
  }
}

/** Length of the longest end of `text` with which `stop` begins. @param {string} text @param {string} stop */
function overlap(text, stop) {
  let size = Math.min(text.length, stop.length - 1);
  while (size > 0 && !text.endsWith(stop.slice(0, size))) size--;
  return size;
}
