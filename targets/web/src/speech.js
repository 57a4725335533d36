/** Writing down speech with Whisper: one run of the encoder for a window of sound, then one of the decoder for each token, greedily. */

import { BundleError, InputError } from "./errors.js";
import { endTokens, stopsOf } from "./generate.js";
import { readLogMel } from "./log_mel.js";
import { decoder, write } from "./loop.js";
import { Pieces } from "./pieces.js";
import { GREEDY, Sampler } from "./sampling.js";
import { begun, readSettings, renamed } from "./seq2seq.js";

/**
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./backend.js").Tensor} Tensor
 * @typedef {import("./cache.js").Run} Run
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 *
 * @typedef {object} TranscribeOptions
 * @property {number} [samplingRate]  Samples a second; the model's (16,000) where it is left out. An AudioContext of that rate resamples.
 * @property {string} [language]  What is spoken (`"en"`); by default the likeliest one of each window.
 * @property {"transcribe" | "translate"} [task]  `"translate"`: into English.
 * @property {number} [maxNewTokens]  Of each window.
 * @property {string | string[]} [stop]  Texts, or special tokens, to stop before.
 * @property {string | number | (string | number)[]} [eos]  Further tokens that end a text.
 * @property {(piece: string) => void} [onText]  Is told each piece of text as it comes.
 * @property {AbortSignal} [signal]  Ends it after the token that it is at.
 *
 * @typedef {object} Segment
 * @property {number} start  In seconds.
 * @property {number} end
 * @property {string | null} language
 * @property {string} text
 * @property {number[]} tokens  With the one that ended it.
 * @property {"eos" | "length" | "stop" | "cancelled"} finish
 *
 * @typedef {{ text: string, language: string | null, seconds: number, segments: Segment[] }} Transcription
 */

/** The last part of a window in which a quiet place is looked for, and the length that is looked at, in seconds. */
const LOOK_BACK = 5;
const QUIET = 0.2;

/** What a bundle needs to write down speech, read once. */
export class Transcriber {
  /**
   * @param {string} name @param {TextEncoder | null} encoder @param {Backend} backend
   * @param {(file: string) => Promise<string | null>} read  A file of the bundle, checked.
   * @param {import("./manifest.js").Manifest} manifest
   */
  static async open(name, encoder, backend, read, manifest) {
    if (encoder === null) throw new BundleError(`${name} holds no tokenizer.json, which writing texts needs`);
    const config = await readSettings(name, read);
    const input = manifest.inputs.find((value) => value.name === "input_features");
    const logMel = readLogMel(name, await read("preprocessor_config.json"), input?.shape ?? []);
    return new Transcriber(name, encoder, backend, logMel, config, manifest.max_length ?? config.max_target_positions);
  }

  /** @param {string} name @param {TextEncoder} encoder @param {Backend} backend @param {import("./log_mel.js").LogMel} logMel @param {Record<string, any>} config @param {number} room */
  constructor(name, encoder, backend, logMel, config, room) {
    const where = `${name}/generation_config.json`;
    /** @param {unknown} value @param {string} what @returns {number} */
    const token = (value, what) => {
      if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value < config.vocab_size) return value;
      throw new BundleError(`${where}: ${what} is ${JSON.stringify(value)}, which is no token of the ${config.vocab_size} that the model has`);
    };
    /** @param {string} key @returns {number[]} */
    const tokens = (key) => {
      const value = config[key] ?? [];
      if (!Array.isArray(value)) throw new BundleError(`${where}: ${key} must be a list of tokens`);
      return value.filter((each) => each !== -1).map((each) => token(each, key)); // -1: what transformers writes for "none"
    };
    /** @param {string} key @returns {Map<string, number>} */
    const named = (key) => new Map(Object.entries(config[key] ?? {}).map(([each, value]) => [each, token(value, `${key}.${each}`)]));
    this.tokenizer = encoder.tokenizer;
    this.backend = backend;
    this.logMel = logMel;
    this.room = room;
    this.start = token(config.decoder_start_token_id, "decoder_start_token_id");
    this.plain = config.no_timestamps_token_id == null ? [] : [token(config.no_timestamps_token_id, "no_timestamps_token_id")];
    this.languages = named("lang_to_id");
    this.tasks = named("task_to_id");
    this.never = tokens("suppress_tokens");
    this.neverFirst = [...this.never, ...tokens("begin_suppress_tokens")];
    this.ends = [config.eos_token_id ?? []].flat();
  }

  /**
   * @param {Float32Array} wave  One channel, of -1 to 1.
   * @param {TranscribeOptions} options
   * @param {Run} encode  One run of the encoder with the adapter that was in use.
   * @param {Run} decode  The same of the decoder.
   * @param {readonly string[]} names  The decoder's inputs.
   * @returns {Promise<Transcription>}
   */
  async transcribe(wave, options, encode, decode, names) {
    const { rate, samples } = this.logMel;
    if (!(wave instanceof Float32Array) || wave.length === 0) throw new InputError("sound is a Float32Array of one channel's samples, and not an empty one");
    const odd = wave.findIndex((value) => !Number.isFinite(value));
    if (odd !== -1) throw new InputError(`the sound holds NaN or infinity at sample ${odd}`);
    const { samplingRate = rate } = options;
    if (samplingRate !== rate) {
      throw new InputError(`the sound has ${samplingRate} samples a second and the model takes ${rate}: decode it in an AudioContext({ sampleRate: ${rate} })`);
    }
    const before = this.#before(options.language, options.task ?? "transcribe");
    const most = this.room - before.length;
    const { maxNewTokens = most } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1 || maxNewTokens > most) {
      throw new InputError(`maxNewTokens must be a whole number from 1 to ${most}, found ${maxNewTokens}`);
    }
    /** @type {Segment[]} */
    const segments = [];
    for (const [start, end] of windows(wave, rate, samples)) {
      const found = await this.#window(wave.subarray(start, end), before, maxNewTokens, options, encode, decode, names);
      segments.push({ start: start / rate, end: end / rate, ...found });
      if (options.signal?.aborted) break;
    }
    const text = segments.map((segment) => segment.text.trim()).filter(Boolean);
    return { text: text.join(" "), language: segments[0]?.language ?? null, seconds: wave.length / rate, segments };
  }

  /** The tokens before an answer, `null` in place of a language that is to be heard. @param {string | undefined} language @param {string} task */
  #before(language, task) {
    if (task !== "transcribe" && task !== "translate") throw new InputError(`task must be one of transcribe, translate, found ${task}`);
    if (this.languages.size === 0) {
      if ((language !== undefined && language !== "en") || task !== "transcribe") {
        throw new InputError("this model transcribes one language: language and task are for multilingual ones");
      }
      return [this.start, ...this.plain];
    }
    const said = this.tasks.get(task);
    if (said === undefined) throw new InputError(`this model's generation_config.json has no token for task ${task}`);
    const chosen = language === undefined ? null : this.languages.get(`<|${language.toLowerCase()}|>`);
    if (chosen === undefined) {
      const known = [...this.languages.keys()].map((key) => key.slice(2, -2)).sort();
      throw new InputError(`language ${language} is none of this model's: ${known.join(", ")}`);
    }
    return [this.start, chosen, said, ...this.plain];
  }

  /**
   * @param {Float32Array} wave @param {(number | null)[]} before @param {number} room @param {TranscribeOptions} options
   * @param {Run} encode @param {Run} decode @param {readonly string[]} names
   */
  async #window(wave, before, room, options, encode, decode, names) {
    const { bins, frames } = this.logMel;
    const { texts, tokens: stops } = stopsOf(options.stop, this.tokenizer);
    const input_features = this.backend.tensor("float32", this.logMel.compute(wave), [1, bins, frames]);
    const empty = begun(await encode({ input_features }), names, this.backend);
    let cache = empty;
    /** @param {number[]} fed @param {number[]} never @returns {Promise<Float32Array>} */
    const feed = async (fed, never) => {
      const input_ids = this.backend.tensor("int64", BigInt64Array.from(fed, BigInt), [1, fed.length]);
      const found = await decode({ input_ids, ...cache });
      cache = { ...cache, ...renamed(found) };
      const logits = /** @type {Tensor} */ (found.logits);
      const last = /** @type {Float32Array} */ (logits.data).slice(-(logits.dims.at(-1) ?? 1));
      for (const token of never) last[token] = Number.NEGATIVE_INFINITY;
      return last;
    };
    let language = before[1] ?? null;
    if (before.includes(null)) {
      const logits = await feed([this.start], []);
      const score = (/** @type {number} */ token) => logits[token] ?? Number.NEGATIVE_INFINITY;
      language = [...this.languages.values()].reduce((best, token) => (score(token) > score(best) ? token : best));
      cache = empty;
    }
    const logits = await feed(
      before.map((token) => token ?? /** @type {number} */ (language)),
      this.neverFirst,
    );
    const written = await write({
      logits,
      feed: async (fed) => [await feed(fed, this.never)],
      sampler: new Sampler(GREEDY, []),
      pieces: new Pieces(decoder(this.tokenizer), [], texts),
      ends: [...this.ends, ...endTokens(options.eos, this.tokenizer)],
      stops,
      room,
      onText: options.onText ?? (() => {}),
      signal: options.signal,
    });
    const name = [...this.languages].find(([, token]) => token === language)?.[0].slice(2, -2) ?? null;
    return { language: name, text: written.text, tokens: written.tokens, finish: written.finish };
  }
}

/**
 * Where a wave is cut into parts of at most `most` samples: at the quietest place of the last five seconds of each.
 *
 * @param {Float32Array} wave @param {number} rate @param {number} most
 * @returns {Generator<[number, number], void>}
 */
export function* windows(wave, rate, most) {
  let start = 0;
  const length = Math.max(1, Math.trunc(QUIET * rate));
  while (wave.length - start > most) {
    const first = start + Math.max(most - Math.trunc(LOOK_BACK * rate), Math.trunc(most / 2));
    const stop = start + most;
    let end = stop;
    let power = 0;
    let [least, largest] = [Number.POSITIVE_INFINITY, 0];
    for (let place = first; place < stop; place++) {
      power += (wave[place] ?? 0) ** 2;
      const begin = place - length + 1;
      if (begin < first) continue;
      const quiet = Math.max(0, power);
      if (quiet <= least) {
        least = quiet;
        end = begin + Math.trunc(length / 2);
      }
      largest = Math.max(largest, quiet);
      power -= (wave[begin] ?? 0) ** 2;
    }
    if (!(least < largest)) end = stop; // one place is as quiet as any other
    yield [start, end];
    start = end;
  }
  yield [start, wave.length];
}
