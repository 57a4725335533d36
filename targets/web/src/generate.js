/** Generation with a causal language model: chat template, sampling, end tokens, text that comes piece by piece. */

import { Template } from "@huggingface/jinja";

import { Cache, cacheInputs, pieceSize } from "./cache.js";
import { Drafter, RunCosts } from "./draft.js";
import { BundleError, InputError } from "./errors.js";
import { decoder, write } from "./loop.js";
import { Pieces } from "./pieces.js";
import { chooseSampling, Sampler } from "./sampling.js";

/**
 * @typedef {import("./active.js").Active} Active
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./cache.js").Run} Run
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./sampling.js").SamplingDefaults} SamplingDefaults
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 * @typedef {{ role: string, content: string }} Message
 *
 * @typedef {object} AnswerOptions
 * @property {number} [maxNewTokens]  What `generation_config.json` says, else 256; the context limits it in any case.
 * @property {string | string[]} [stop]  Texts or special tokens at which to stop; they are not part of the answer.
 * @property {string | number | (string | number)[]} [eos]  Further tokens that end the answer, by text or number.
 * @property {object[]} [tools]  For the chat template: functions that the model may call.
 * @property {object[]} [documents]  For the chat template: texts to answer from.
 * @property {boolean} [enableThinking]  For the chat template: whether the model thinks first.
 * @property {Record<string, unknown>} [chatTemplateKwargs]  Further variables of the chat template.
 * @property {"prompt"} [draft]  Look up drafts in prompt and answer, and verify several tokens in one run.
 * @property {boolean} [chat]  Whether a text goes through the chat template as a user's message; by default it does where
 *   the bundle has one. Messages always do.
 * @property {string} [system]  Put before such a text.
 * @property {(piece: string) => void} [onText]  Told each piece as it comes; no piece ends within a character.
 * @property {AbortSignal} [signal]  Ends the generation after the token under way.
 * @typedef {AnswerOptions & import("./sampling.js").SamplingOptions} GenerateOptions  What is not given comes from
 *   `generation_config.json`; where that is silent the answer is greedy.
 *
 * @typedef {object} Reading
 * @property {number} promptTokens
 * @property {number} prefillMs  Until the first token is known.
 * @typedef {import("./loop.js").Written & Reading} Generation
 *
 * @typedef {object} Settings
 * @property {string | null} template
 * @property {string | null} toolUse  The template for calls with tools, where there is one of its own.
 * @property {Record<string, string>} special
 * @property {number[]} eos
 * @property {number | null} newTokens
 * @property {SamplingDefaults} sampling
 */

const NEW_TOKENS = 256;
const SPECIAL = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/** What a bundle needs to generate, read once. */
export class Generator {
  /**
   * @param {Manifest} manifest
   * @param {string} name
   * @param {TextEncoder | null} encoder
   * @param {Backend} backend
   * @param {(file: string) => Promise<string | null>} read  A file of the bundle, checked.
   * @param {Run} base  One run with the base.
   */
  static async open(manifest, name, encoder, backend, read, base) {
    if (manifest.task !== "text-generation") {
      throw new InputError(`${name} is for ${manifest.task}; generating needs a text-generation bundle (a causal language model)`);
    }
    if (encoder === null) throw new BundleError(`${name} holds no tokenizer.json, which generation from text needs`);
    cacheInputs(manifest.inputs, name);
    const settings = await readSettings(name, read);
    return new Generator(manifest, name, encoder, backend, settings, await pieceSize(backend, manifest.inputs, manifest.max_length, base));
  }

  /** @param {Manifest} manifest @param {string} name @param {TextEncoder} encoder @param {Backend} backend @param {Settings} settings @param {number} piece */
  constructor(manifest, name, encoder, backend, settings, piece) {
    this.manifest = manifest;
    this.name = name;
    this.tokenizer = encoder.tokenizer;
    this.backend = backend;
    this.settings = settings;
    /** How many tokens of a prompt are fed at a time. */
    this.piece = piece;
    /** What runs over several tokens cost here. */
    this.costs = new RunCosts();
  }

  /** @param {string | Message[]} prompt @param {GenerateOptions} options @param {number} before @returns {number[]} */
  #encode(prompt, options, before) {
    const { chat = this.settings.template !== null, system } = options;
    const variables = templateVariables(options);
    if (typeof prompt === "string" && !chat && Object.keys(variables).length) {
      throw new InputError(`${Object.keys(variables).join(", ")} is for the chat template, and this prompt goes to the model as it is`);
    }
    if (typeof prompt === "string") {
      if (!prompt) throw new InputError("the prompt is empty; give at least one character");
      if (!chat) {
        if (system !== undefined) throw new InputError("a system message needs the chat template, and this prompt is given as it is");
        return this.#fits(this.#ids(prompt, true), before);
      }
      prompt = [...(system === undefined ? [] : [{ role: "system", content: system }]), { role: "user", content: prompt }];
    }
    if (!Array.isArray(prompt) || !prompt.length || prompt.some((m) => typeof m?.role !== "string" || typeof m?.content !== "string")) {
      throw new InputError("a prompt is a text, or a list of messages with a role (system, user, assistant) and content");
    }
    if (this.settings.template === null) {
      throw new InputError(
        `${this.name} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); give a plain prompt with chat: false`,
      );
    }
    const template = variables.tools?.length && this.settings.toolUse !== null ? this.settings.toolUse : this.settings.template;
    for (const name of /** @type {const} */ (["tools", "documents"])) {
      if (variables[name]?.length && !new RegExp(`\\b${name}\\b`).test(template)) {
        throw new InputError(`the chat template of ${this.name} does not read ${name}: this model was not trained to be given any`);
      }
    }
    let text;
    try {
      text = new Template(template).render({
        ...this.settings.special,
        tools: null,
        documents: null,
        ...variables,
        messages: prompt,
        add_generation_prompt: true,
      });
    } catch (error) {
      throw new InputError(
        `the chat template of ${this.name} cannot render these messages: ${/** @type {Error} */ (error).message}. Change them, or give a plain prompt with chat: false.`,
        { cause: error },
      );
    }
    // The template writes the special tokens itself.
    return this.#fits(this.#ids(text, false), before);
  }

  /** @param {string} text @param {boolean} special */
  #ids(text, special) {
    if (/\p{Surrogate}/u.test(text)) throw new InputError(`${JSON.stringify(text)} is not a text (valid Unicode)`);
    return this.tokenizer.encode(text, { add_special_tokens: special }).ids;
  }

  /** The context less the states of an adapter that stand before the sequence. @param {number} before */
  #room(before) {
    // Beyond `rope_switch` rotary frequencies are others from the first token on; a sequence is not read anew here.
    return Math.min(this.manifest.max_length ?? Infinity, this.manifest.rope_switch ?? Infinity) - before;
  }

  /** @param {number[]} tokens @param {number} before */
  #fits(tokens, before) {
    const limit = this.#room(before);
    if (!tokens.length) throw new InputError("the prompt has no tokens; give at least one word");
    if (tokens.length >= limit) {
      const beside = before ? ` beside the adapter's ${before} states` : "";
      throw new InputError(`the prompt has ${tokens.length} tokens; ${this.name} takes at most ${limit}${beside}, prompt and answer together. Shorten it.`);
    }
    return tokens;
  }

  /** A fresh cache; it begins with the adapter's states where it has some. @param {Run} run @param {Active} active */
  #cache(run, active) {
    return new Cache(this.backend, this.manifest.inputs, run, active.prefix);
  }

  /**
   * The logits of the token after a text.
   *
   * @param {string} text
   * @param {Run} run
   * @param {Active} active
   * @returns {Promise<Float32Array>}
   */
  async next(text, run, active) {
    const ids = this.#encode(text, { chat: false }, active.prefixLength);
    return /** @type {Float32Array} */ (await this.#cache(run, active).prefill(ids, this.piece));
  }

  /**
   * @param {string | Message[]} prompt
   * @param {GenerateOptions} options
   * @param {Run} run
   * @param {Active} active  The adapter that was in use, with which `run` runs.
   * @returns {Promise<Generation>}
   */
  async generate(prompt, options, run, active) {
    const { signal, onText = () => {} } = options;
    const { texts: stop, tokens: stops } = stopsOf(options.stop, this.tokenizer);
    const ends = [...this.settings.eos, ...endTokens(options.eos, this.tokenizer)];
    const wanted = options.maxNewTokens ?? this.settings.newTokens ?? NEW_TOKENS;
    if (options.draft !== undefined && options.draft !== "prompt") {
      throw new InputError(`draft is "prompt" (drafts are looked up in prompt and answer), found ${JSON.stringify(options.draft)}`);
    }
    if (!Number.isInteger(wanted) || wanted < 1) throw new InputError(`maxNewTokens must be a whole number from 1 on, found ${wanted}`);
    const sampling = chooseSampling(options, this.settings.sampling);
    const ids = this.#encode(prompt, options, active.prefixLength);
    const room = Math.min(wanted, this.#room(active.prefixLength) - ids.length);
    const sampler = new Sampler(sampling, ids);
    const begin = performance.now();
    const cache = this.#cache(run, active);
    const logits = await cache.prefill(ids, this.piece, () => signal?.aborted ?? false);
    const first = performance.now();
    if (logits === null) return { text: "", tokens: [], promptTokens: ids.length, finish: "cancelled", prefillMs: first - begin, tokensPerSecond: null };
    const written = await write({
      logits,
      feed: (tokens) => cache.verify(tokens),
      forget: (count) => cache.forget(count),
      drafter: options.draft === undefined ? undefined : new Drafter(ids, this.costs),
      sampler,
      pieces: new Pieces(decoder(this.tokenizer), ids, stop),
      ends,
      stops,
      room,
      onText,
      signal,
    });
    return { ...written, promptTokens: ids.length, prefillMs: first - begin };
  }
}

/** Stop texts as a list; an empty one would stop everything at once. @param {string | string[] | undefined} stop @returns {string[]} */
export function stopTexts(stop = []) {
  const texts = [stop].flat();
  if (texts.some((text) => typeof text !== "string" || !text)) {
    throw new InputError(`a stop string must be a text of at least one character, found ${JSON.stringify(stop)}`);
  }
  return texts;
}

/**
 * Stop texts, and the numbers of those that are special tokens: a special token is no text, so as a text it never comes.
 *
 * @param {string | string[] | undefined} stop
 * @param {TextEncoder["tokenizer"]} tokenizer
 * @returns {{ texts: string[], tokens: number[] }}
 */
export function stopsOf(stop, tokenizer) {
  /** @type {Map<string, number>} */
  const special = new Map([...tokenizer.get_added_tokens_decoder()].filter(([, token]) => token.special).map(([id, token]) => [token.content, id]));
  /** @type {string[]} */ const texts = [];
  /** @type {number[]} */ const tokens = [];
  for (const text of stopTexts(stop)) {
    const id = special.get(text);
    const inside = [...special.keys()].find((token) => text.includes(token));
    if (id !== undefined) tokens.push(id);
    else if (inside === undefined) texts.push(text);
    else
      throw new InputError(
        `the stop string ${JSON.stringify(text)} holds the special token ${inside} among other text; give both as stop strings of their own`,
      );
  }
  return { texts, tokens };
}

/** @param {GenerateOptions["eos"]} eos @param {TextEncoder["tokenizer"]} tokenizer @returns {number[]} */
export function endTokens(eos, tokenizer) {
  return [eos ?? []].flat().map((token) => {
    const id = typeof token === "string" ? tokenizer.token_to_id(token) : token;
    if (typeof id !== "number" || !Number.isSafeInteger(id) || id < 0) throw new InputError(`eos: ${JSON.stringify(token)} is no token of this tokenizer`);
    return id;
  });
}

/** What goes to the chat template beside the messages. @param {GenerateOptions} options @returns {Record<string, any>} */
function templateVariables({ tools, documents, enableThinking, chatTemplateKwargs = {} }) {
  for (const [name, given] of Object.entries({ tools, documents })) {
    if (given !== undefined && !Array.isArray(given)) throw new InputError(`${name} is a list, found ${JSON.stringify(given)}`);
  }
  const taken = ["messages", "add_generation_prompt"].find((name) => name in chatTemplateKwargs);
  if (taken !== undefined) throw new InputError(`chatTemplateKwargs: ${taken} is what the prompt itself says`);
  const named = { tools, documents, enable_thinking: enableThinking };
  return { ...chatTemplateKwargs, ...Object.fromEntries(Object.entries(named).filter(([, value]) => value !== undefined)) };
}

/** What a model's own files say about generating with it. @param {string} name @param {(file: string) => Promise<string | null>} read @returns {Promise<Settings>} */
async function readSettings(name, read) {
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
  /** @type {{ name: string, template: string }[]} */
  const named = Array.isArray(tokenizer.chat_template) ? tokenizer.chat_template : [];
  const several = named.length ? named.find(({ name: of }) => of === "default")?.template : tokenizer.chat_template;
  const special = SPECIAL.map((key) => [key, tokenizer[key]?.content ?? tokenizer[key]]).filter(([, value]) => typeof value === "string");
  const sampling = {
    sample: Boolean(generation.do_sample ?? false),
    temperature: generation.temperature ?? 1,
    topK: generation.top_k ?? 0,
    topP: generation.top_p ?? 1,
    repetitionPenalty: generation.repetition_penalty ?? 1,
  };
  try {
    chooseSampling({}, sampling);
  } catch (error) {
    throw new BundleError(`${name}/generation_config.json holds a value that is not usable: ${/** @type {Error} */ (error).message}`, { cause: error });
  }
  return {
    template: (await read("chat_template.jinja")) ?? several ?? null,
    toolUse: named.find(({ name: of }) => of === "tool_use")?.template ?? null,
    special: Object.fromEntries(special),
    eos: [generation.eos_token_id ?? config.eos_token_id ?? config.text_config?.eos_token_id ?? []].flat(),
    newTokens: generation.max_new_tokens ?? null,
    sampling,
  };
}
