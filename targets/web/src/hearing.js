/** Writing down one window of sound: one run of the encoder, then one of the decoder for each token, and again where an answer fails. */

import { compressionRatio, isSilent, judges, keptAnswer, logProbability, TEMPERATURES } from "./fallback.js";
import { endTokens, stopsOf } from "./generate.js";
import { decoder, write } from "./loop.js";
import { Pieces } from "./pieces.js";
import { GREEDY, Sampler } from "./sampling.js";
import { begun, renamed } from "./seq2seq.js";
import { partsOf, TimestampRules, upTo } from "./timestamps.js";

/**
 * @typedef {import("./backend.js").Tensor} Tensor
 * @typedef {import("./cache.js").Run} Run
 * @typedef {import("./fallback.js").Confidence} Confidence
 * @typedef {import("./speech.js").Transcriber} Transcriber
 * @typedef {import("./speech.js").TranscribeOptions} TranscribeOptions
 * @typedef {import("./timestamps.js").Timestamps} Timestamps
 *
 * @typedef {object} Manner
 * @property {(number | null)[]} before  The tokens before an answer, `null` in place of a language that is to be heard.
 * @property {Timestamps | null} timestamps  Where answers hold them.
 * @property {import("./fallback.js").Fallback} fallback
 * @property {number} seed
 * @property {number} room  How many tokens at most.
 * @property {TranscribeOptions} options
 *
 * @typedef {object} Heard
 * @property {string} text
 * @property {number[]} tokens  With the one that ended it.
 * @property {"eos" | "length" | "stop" | "cancelled"} finish
 * @property {string | null} language
 * @property {Confidence} confidence
 * @property {import("./timestamps.js").Part[]} parts  With timestamps.
 * @property {number | null} rest  Where the window ends in the middle of speech: where that begins, in samples behind its begin.
 * @property {boolean} silent  Nobody spoke: what was written is void.
 */

/**
 * @param {Transcriber} writer @param {Float32Array} wave @param {number} number  Of the window in its sound. @param {Manner} manner
 * @param {{ encode: Run, decode: Run, names: readonly string[] }} runs  Of the encoder and the decoder, and the decoder's inputs.
 * @returns {Promise<Heard>}
 */
export async function hear(writer, wave, number, manner, { encode, decode, names }) {
  const { backend, logMel, tokenizer } = writer;
  const { options, timestamps, fallback } = manner;
  const { texts, tokens: stops } = stopsOf(options.stop, tokenizer);
  const ends = [...writer.ends, ...endTokens(options.eos, tokenizer)];
  const input_features = backend.tensor("float32", logMel.compute(wave), [1, logMel.bins, logMel.frames]);
  const empty = begun(await encode({ input_features }), names, backend);
  let cache = empty;
  /** Logits behind the first and the last of some tokens. @param {number[]} fed */
  const feed = async (fed) => {
    const input_ids = backend.tensor("int64", BigInt64Array.from(fed, BigInt), [1, fed.length]);
    const found = await decode({ input_ids, ...cache });
    cache = { ...cache, ...renamed(found) };
    const { data, dims } = /** @type {Tensor} */ (found.logits);
    const size = dims.at(-1) ?? 1;
    const logits = /** @type {Float32Array} */ (data);
    return { first: logits.slice(0, size), last: logits.slice(-size) };
  };
  const without = (/** @type {Float32Array} */ logits, /** @type {number[]} */ never) => {
    for (const token of never) logits[token] = Number.NEGATIVE_INFINITY;
    return logits;
  };
  let language = manner.before[1] ?? null;
  if (manner.before.includes(null)) {
    const { last } = await feed([writer.start]);
    const score = (/** @type {number} */ token) => last[token] ?? Number.NEGATIVE_INFINITY;
    language = [...writer.languages.values()].reduce((best, token) => (score(token) > score(best) ? token : best));
  }
  const before = manner.before.map((token) => token ?? /** @type {number} */ (language));
  const name = [...writer.languages].find(([, token]) => token === language)?.[0].slice(2, -2) ?? null;
  const text = decoder(tokenizer);

  /** One answer. @param {number} temperature @param {number} row  Of the random numbers. @param {(piece: string) => void} onText @returns {Promise<Heard>} */
  const answer = async (temperature, row, onText) => {
    cache = empty;
    const { first, last } = await feed(before);
    const noSpeech = writer.silence === null ? null : Math.exp(logProbability(first, writer.silence));
    const rules = timestamps === null ? null : new TimestampRules(timestamps, Math.min(...writer.ends));
    without(last, writer.neverFirst);
    rules?.first(last);
    let logprob = 0;
    const written = await write({
      logits: last,
      feed: async ([token = 0]) => {
        const logits = without((await feed([token])).last, writer.never);
        rules?.after(token, logits);
        return [logits];
      },
      sampler: new Sampler({ ...GREEDY, temperature, seed: manner.seed }, [], row),
      pieces: new Spoken(text, texts, writer.timestamps),
      ends,
      stops,
      room: manner.room,
      onText,
      onToken: (token, logits) => {
        logprob += logProbability(logits, token);
      },
      signal: options.signal,
    });
    const meanLogprob = logprob / written.tokens.length;
    const confidence = { temperature, meanLogprob, compressionRatio: await compressionRatio(written.text), noSpeech };
    const ended = written.finish === "eos";
    const { parts, rest } = timestamps === null ? { parts: [], rest: null } : partsOf(written.tokens.slice(0, ended ? -1 : undefined), timestamps, text);
    return {
      text: written.text,
      tokens: written.tokens,
      finish: written.finish,
      language: name,
      confidence,
      parts: written.finish === "stop" ? upTo(parts, written.text.length) : parts,
      rest: ended ? rest : null,
      silent: false,
    };
  };
  const { onText = () => {} } = options;
  if (fallback === "off") return answer(0, 0, onText);
  let found = await answer(0, 0, () => {});
  if (judges(fallback, found.confidence) && !options.signal?.aborted) {
    found = await keptAnswer(found, (tried) => answer(TEMPERATURES[tried - 1] ?? 1, number * (1 + TEMPERATURES.length) + tried, () => {}));
    found = { ...found, silent: isSilent(found.confidence) };
  }
  if (found.text && !found.silent) onText(found.text);
  return found;
}

/** Text as it is written, without timestamps. */
class Spoken extends Pieces {
  #marks;

  /** @param {(tokens: number[]) => string} decode @param {string[]} stop @param {Timestamps | null} marks */
  constructor(decode, stop, marks) {
    super(decode, [], stop);
    this.#marks = marks;
  }

  /** @override @param {number} token */
  push(token) {
    if (!this.#marks?.has(token)) return super.push(token);
    this.tokens.push(token);
    return "";
  }
}
