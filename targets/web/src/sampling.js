/** Choosing the next token from logits: the rules, and the draws, of edgepeft's Python runtime. */

import { InputError, NonFiniteError } from "./errors.js";
import { anySeed, Random } from "./random.js";

/**
 * How tokens are chosen. A `temperature` of 0 is greedy; `topK` 0 and `topP` 1 keep every token. `repetitionPenalty` divides
 * positive logits of tokens seen before and multiplies negative ones, 1 leaves them. In this order, as in Hugging Face's
 * `generate`: penalty, temperature, top-k, top-p. Without a `seed` one is drawn.
 *
 * @typedef {object} SamplingOptions
 * @property {number} [temperature]
 * @property {number} [topK]
 * @property {number} [topP]
 * @property {number} [repetitionPenalty]
 * @property {number} [seed]
 *
 * @typedef {{ temperature: number, topK: number, topP: number, repetitionPenalty: number, seed: number | null }} Sampling
 * @typedef {{ sample: boolean, temperature: number, topK: number, topP: number, repetitionPenalty: number }} SamplingDefaults
 */

/**
 * What the caller gave over what the model's files say. Without any of temperature, top-k and top-p the model's `do_sample`
 * decides between greedy and sampling; a temperature above 0, a top-k or a top-p asks for sampling, temperature 0 for greedy.
 *
 * @param {SamplingOptions} options
 * @param {SamplingDefaults} defaults
 * @returns {Sampling}
 * @throws {InputError} For a value out of range.
 */
export function chooseSampling(options, defaults) {
  const asked = [options.temperature, options.topK, options.topP].some((value) => value !== undefined);
  const sample = asked ? options.temperature !== 0 : defaults.sample;
  const sampling = {
    temperature: options.temperature ?? defaults.temperature,
    topK: options.topK ?? defaults.topK,
    topP: options.topP ?? defaults.topP,
    repetitionPenalty: options.repetitionPenalty ?? defaults.repetitionPenalty,
    seed: options.seed ?? null,
  };
  checkSampling(sampling); // every value, those that greedy does not use included
  return sample ? sampling : { ...sampling, temperature: 0, topK: 0, topP: 1 };
}

/** @param {Sampling} sampling */
function checkSampling({ temperature, topK, topP, repetitionPenalty, seed }) {
  if (!Number.isFinite(temperature) || temperature < 0) throw new InputError(`temperature must be a finite number of at least 0, found ${temperature}`);
  if (!Number.isFinite(topP) || topP <= 0 || topP > 1) throw new InputError(`topP must be above 0 and at most 1, found ${topP}`);
  if (!Number.isSafeInteger(topK) || topK < 0) throw new InputError(`topK must be a whole number, 0 (off) or more, found ${topK}`);
  if (!Number.isFinite(repetitionPenalty) || repetitionPenalty <= 0)
    throw new InputError(`repetitionPenalty must be a number above 0, found ${repetitionPenalty}`);
  if (seed !== null && (!Number.isSafeInteger(seed) || seed < 0)) throw new InputError(`seed must be a whole number, 0 or more, found ${seed}`);
}

/** @type {Sampling} */
export const GREEDY = { temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, seed: 0 };

/** Chooses the tokens of one answer. */
export class Sampler {
  #sampling;
  #random;
  /** @type {Set<number> | null} */ #seen;

  /** @param {Sampling} sampling @param {number[]} prompt @param {number} [row]  Rows draw other numbers by one seed. */
  constructor(sampling, prompt, row = 0) {
    this.#sampling = sampling;
    this.#random = new Random([sampling.seed ?? anySeed(), row]); // as in Python
    this.#seen = sampling.repetitionPenalty === 1 ? null : new Set(prompt);
  }

  /** The next token for logits `[vocabulary]`; they are not changed. @param {Float32Array} logits */
  pick(logits) {
    const scores = this.#seen === null ? logits : penalized(logits, this.#seen, this.#sampling.repetitionPenalty);
    const best = argmax(scores);
    if (!Number.isFinite(scores[best]))
      throw new NonFiniteError(`the model's logits are not finite numbers (${scores[best]}); try another variant or adapter, or export the bundle again`);
    const token = this.#sampling.temperature === 0 ? best : this.#draw(scores);
    this.#seen?.add(token);
    return token;
  }

  /** @param {Float32Array} logits */
  #draw(logits) {
    const { temperature, topK, topP } = this.#sampling;
    const at = (/** @type {number} */ token) => /** @type {number} */ (logits[token]);
    const kept = descending(logits, topK || logits.length);
    // Differences first: the largest becomes 0, and a temperature near 0 cannot overflow.
    const top = at(/** @type {number} */ (kept[0]));
    const weights = kept.map((token) => Math.exp((at(token) - top) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    let reached = 0;
    let cumulative = weights.map((weight) => (reached += weight / total));
    if (topP < 1) {
      // The smallest set of most likely tokens whose probability reaches topP.
      const enough = cumulative.findIndex((share) => share >= topP);
      if (enough >= 0) cumulative = cumulative.slice(0, enough + 1);
    }
    const drawn = this.#random.random() * /** @type {number} */ (cumulative.at(-1));
    const place = cumulative.findIndex((share) => share > drawn);
    return /** @type {number} */ (kept[place < 0 ? cumulative.length - 1 : place]);
  }
}

/** Tokens are below 2 ** 21: a score's 32 bits and a token's 21 are a whole number that a double holds. */
const TOKENS = 2 ** 21;

/**
 * The `count` tokens with the largest scores, largest first and of equal ones the first. As sorting numbers: a comparator over
 * a whole vocabulary takes longer than a step of a small model.
 *
 * @param {Float32Array} scores @param {number} count
 * @returns {number[]}
 */
function descending(scores, count) {
  const bits = new Int32Array(Float32Array.from(scores, (score) => score + 0).buffer); // -0 becomes 0
  const keys = new Float64Array(scores.length);
  for (let token = 0; token < keys.length; token++) {
    const word = /** @type {number} */ (bits[token]);
    const rank = word < 0 ? word >>> 0 : (~word & 0x7fffffff) >>> 0; // falls as the score rises
    keys[token] = rank * TOKENS + token;
  }
  return Array.from(keys.sort().subarray(0, count), (key) => key % TOKENS);
}

/** The first of the largest, as numpy's argmax: a NaN counts as larger than any number. @param {Float32Array} values */
function argmax(values) {
  let best = 0;
  for (let i = 0; i < values.length; i++) {
    const value = /** @type {number} */ (values[i]);
    if (Number.isNaN(value)) return i;
    if (value > /** @type {number} */ (values[best])) best = i;
  }
  return best;
}

/** @param {Float32Array} logits @param {Set<number>} seen @param {number} penalty */
function penalized(logits, seen, penalty) {
  const changed = logits.slice();
  const divisor = Math.fround(penalty); // numpy divides in float32
  for (const token of seen) {
    const value = /** @type {number} */ (logits[token]);
    changed[token] = value > 0 ? value / divisor : value * divisor;
  }
  return changed;
}
