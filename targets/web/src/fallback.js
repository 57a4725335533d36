/** Second tries: what a window's first, greedy answer is judged by, and which of several answers stays. The rules are Python's. */

import { logSum } from "./timestamps.js";

/**
 * How sure an answer is: the temperature of the try it comes from, the mean log-probability of its tokens in nats, the size of its text
 * over that when it is packed, and the probability that nobody speaks (`null` for a model without a token for it).
 *
 * @typedef {{ temperature: number, meanLogprob: number, compressionRatio: number, noSpeech: number | null }} Confidence
 * @typedef {"loops" | "all" | "off"} Fallback
 */

/** Of the second tries, one after the other. */
export const TEMPERATURES = [0.2, 0.4, 0.6, 0.8, 1.0];
/** @type {readonly Fallback[]} */
export const FALLBACKS = ["loops", "all", "off"];
const COMPRESSION_RATIO = 2.4;
const MEAN_LOGPROB = -1;
const NO_SPEECH = 0.6;

/** Whether the text goes round in a loop. @param {Confidence} sure */
const repeats = (sure) => sure.compressionRatio > COMPRESSION_RATIO;
/** Whether there was nothing to hear. @param {Confidence} sure */
export const isSilent = (sure) => sure.noSpeech !== null && sure.noSpeech > NO_SPEECH && sure.meanLogprob < MEAN_LOGPROB;
/** @param {Confidence} sure */
const fails = (sure) => (repeats(sure) || sure.meanLogprob < MEAN_LOGPROB) && !isSilent(sure);

/** Whether an answer of this confidence is judged at all. @param {Fallback} fallback @param {Confidence} sure */
export const judges = (fallback, sure) => fallback === "all" || (fallback === "loops" && repeats(sure));

/**
 * The answer that stays: the first one, or one at a higher temperature where that fails; where all fail, the likeliest, of those that
 * do not repeat themselves if there are any.
 *
 * @template {{ confidence: Confidence }} Answer
 * @param {Answer} first
 * @param {(number: number) => Promise<Answer>} again  Gives the answer at a temperature, by its number in `TEMPERATURES` from 1 on.
 * @returns {Promise<Answer>}
 */
export async function keptAnswer(first, again) {
  const answers = [first];
  let last = first;
  while (fails(last.confidence) && answers.length <= TEMPERATURES.length) {
    last = await again(answers.length);
    answers.push(last);
  }
  if (!fails(last.confidence)) return last;
  const calm = answers.filter((answer) => !repeats(answer.confidence));
  return (calm.length ? calm : answers).reduce((best, answer) => (answer.confidence.meanLogprob > best.confidence.meanLogprob ? answer : best));
}

/** Bytes of a text in UTF-8 over its bytes when packed by zlib. @param {string} text */
export async function compressionRatio(text) {
  const raw = new TextEncoder().encode(text.trim());
  const packed = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  return raw.length / (await new Response(packed).arrayBuffer()).byteLength;
}

/** The logarithm of a token's probability by logits `[vocabulary]`, in nats. @param {Float32Array} logits @param {number} token */
export const logProbability = (logits, token) => (logits[token] ?? Number.NEGATIVE_INFINITY) - logSum(logits);
