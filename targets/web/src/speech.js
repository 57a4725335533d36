/** Writing down speech with Whisper, window after window. */

import { BundleError, InputError } from "./errors.js";
import { FALLBACKS } from "./fallback.js";
import { hear } from "./hearing.js";
import { readLogMel } from "./log_mel.js";
import { readSettings } from "./seq2seq.js";
import { windows } from "./sound.js";
import { findTimestamps } from "./timestamps.js";

/**
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./cache.js").Run} Run
 * @typedef {import("./fallback.js").Confidence} Confidence
 * @typedef {import("./fallback.js").Fallback} Fallback
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 *
 * @typedef {object} TranscribeOptions
 * @property {number} [samplingRate]  Samples a second; the model's (16,000) where it is left out. An AudioContext of that rate resamples.
 * @property {string} [language]  What is spoken (`"en"`); by default the likeliest one of each window.
 * @property {"transcribe" | "translate"} [task]  `"translate"`: into English.
 * @property {boolean} [timestamps]  Let the model write when what was said: segments are then parts of windows.
 * @property {Fallback} [fallback]  Which windows are written down again, at temperatures of 0.2 to 1 until one try holds: `"loops"` those
 *   whose text repeats itself, `"all"` also those that the model was not sure of (and where nobody speaks the text is empty), `"off"` none.
 *   By default `"loops"`, and `"off"` with `onText`: with second tries a window's text is told once it stays.
 * @property {number} [seed]  Another one than 0 makes other second tries.
 * @property {number} [maxNewTokens]  Of each window.
 * @property {string | string[]} [stop]  Texts, or special tokens, to stop before.
 * @property {string | number | (string | number)[]} [eos]  Further tokens that end a text.
 * @property {(piece: string) => void} [onText]  Is told each piece of text as it comes.
 * @property {AbortSignal} [signal]  Ends it after the token that it is at.
 *
 * @typedef {object} Segment  A window of sound, or with timestamps a part of one.
 * @property {number} start  In seconds of the whole sound.
 * @property {number} end
 * @property {string | null} language
 * @property {string} text
 * @property {number[]} tokens  A window's with the one that ended it, a part's without timestamps.
 * @property {"eos" | "length" | "stop" | "cancelled"} finish  Of the window.
 * @property {Confidence} confidence  Of the window.
 *
 * @typedef {{ text: string, language: string | null, seconds: number, segments: Segment[] }} Transcription
 */

/** Samples in one step of timestamps are this many frames. */
const FRAMES = 2;
/** In less time, in seconds, nothing is said: a window that ends in the middle of speech is gone on with where it leaves more. */
const LEAST = 0.2;

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
    const silence = this.tokenizer.token_to_id("<|nospeech|>") ?? this.tokenizer.token_to_id("<|nocaptions|>");
    this.silence = silence !== undefined && silence < config.vocab_size ? silence : null;
    this.timestamps = findTimestamps(this.tokenizer, {
      vocabulary: config.vocab_size,
      none: this.plain[0] ?? null,
      latestFirst: config.max_initial_timestamp_index == null ? null : token(config.max_initial_timestamp_index, "max_initial_timestamp_index"),
      window: logMel.samples,
      stride: FRAMES * logMel.hop,
    });
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
    const { timestamps = false, fallback = options.onText === undefined ? "loops" : "off", seed = 0 } = options;
    if (!FALLBACKS.includes(fallback)) throw new InputError(`fallback must be one of ${FALLBACKS.join(", ")}, found ${fallback}`);
    if (!Number.isSafeInteger(seed) || seed < 0) throw new InputError(`seed must be a whole number, 0 or more, found ${seed}`);
    const before = this.#before(options.language, options.task ?? "transcribe", timestamps);
    const most = this.room - before.length;
    const { maxNewTokens = most } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1 || maxNewTokens > most) {
      throw new InputError(`maxNewTokens must be a whole number from 1 to ${most}, found ${maxNewTokens}`);
    }
    const manner = { before, timestamps: timestamps ? this.timestamps : null, fallback, seed, room: maxNewTokens, options };
    /** @type {Segment[]} */
    const segments = [];
    /** @type {string[]} */
    const texts = [];
    for (let start = 0; start < wave.length; ) {
      const [[, length] = [0, 0]] = windows(wave.subarray(start), rate, samples);
      const end = start + length;
      const found = await hear(this, wave.subarray(start, end), texts.length, manner, { encode, decode, names });
      texts.push(found.silent ? "" : found.text.trim());
      segments.push(...cut(found, start, end, rate));
      if (options.signal?.aborted) break;
      const rest = found.silent || found.rest === null ? 0 : found.rest;
      const least = Math.trunc(LEAST * rate);
      start = rest >= least && length - rest >= least ? start + rest : end;
    }
    return { text: texts.filter(Boolean).join(" "), language: segments[0]?.language ?? null, seconds: wave.length / rate, segments };
  }

  /** The tokens before an answer, `null` in place of a language that is to be heard. @param {string | undefined} language @param {string} task @param {boolean} timestamps */
  #before(language, task, timestamps) {
    if (task !== "transcribe" && task !== "translate") throw new InputError(`task must be one of transcribe, translate, found ${task}`);
    if (timestamps && this.timestamps === null) {
      throw new InputError("this model's vocabulary has no timestamps (<|0.00|> and the tokens behind it): leave out timestamps");
    }
    const plain = timestamps ? [] : this.plain;
    if (this.languages.size === 0) {
      if ((language !== undefined && language !== "en") || task !== "transcribe") {
        throw new InputError("this model transcribes one language: language and task are for multilingual ones");
      }
      return [this.start, ...plain];
    }
    const said = this.tasks.get(task);
    if (said === undefined) throw new InputError(`this model's generation_config.json has no token for task ${task}`);
    const chosen = language === undefined ? null : this.languages.get(`<|${language.toLowerCase()}|>`);
    if (chosen === undefined) {
      const known = [...this.languages.keys()].map((key) => key.slice(2, -2)).sort();
      throw new InputError(`language ${language} is none of this model's: ${known.join(", ")}`);
    }
    return [this.start, chosen, said, ...plain];
  }
}

/**
 * A window's segments; it lasts from sample `start` to `end`, and no part of it longer.
 *
 * @param {import("./hearing.js").Heard} heard @param {number} start @param {number} end @param {number} rate
 * @returns {Segment[]}
 */
function cut({ silent, parts, text, tokens, language, finish, confidence }, start, end, rate) {
  const whole = { language, finish, confidence };
  const one = (/** @type {number} */ begin, /** @type {number} */ stop, /** @type {string} */ said, /** @type {number[]} */ written) => ({
    start: begin / rate,
    end: stop / rate,
    text: said.trim(),
    tokens: written,
    ...whole,
  });
  if (silent) return [one(start, end, "", [])];
  if (!parts.length) return [one(start, end, text, tokens)];
  return parts.map((part) => one(Math.min(start + part.start, end), part.end === null ? end : Math.min(start + part.end, end), part.text, part.tokens));
}
