/** Whisper's timestamps: which tokens they are, where one may stand, and the parts of a window that they bound. */

/**
 * @typedef {import("./tokenizer.js").TextEncoder["tokenizer"]} Tokenizer
 *
 * @typedef {object} Part
 * @property {number} start  In samples behind the begin of the window.
 * @property {number | null} end  `null` where none was written.
 * @property {number[]} tokens
 * @property {string} text
 */

/** A model's timestamp tokens: `begin` is 0.00 s, and each token after it, below `end`, is `stride` samples later. */
export class Timestamps {
  /** @param {{ begin: number, end: number, stride: number, latestFirst: number | null, none: number | null }} tokens */
  constructor({ begin, end, stride, latestFirst, none }) {
    this.begin = begin;
    this.end = end;
    this.stride = stride;
    this.latestFirst = latestFirst;
    this.none = none;
  }

  /** @param {number} token */
  has(token) {
    return token >= this.begin && token < this.end;
  }

  /** What a timestamp says, in samples behind the begin of its window. @param {number} token */
  samples(token) {
    return (token - this.begin) * this.stride;
  }
}

/**
 * The timestamp tokens of a vocabulary, or `null` where it has none. They begin where the tokenizer says `<|0.00|>`; one that does not
 * know them is no matter: they then begin behind `none`, if all that a window takes have a place there.
 *
 * @param {Tokenizer} tokenizer
 * @param {{ vocabulary: number, none: number | null, latestFirst: number | null, window: number, stride: number }} model
 *   How many tokens it has, that for "no timestamps", how many steps into a window an answer may begin, and samples of a window and a step.
 * @returns {Timestamps | null}
 */
export function findTimestamps(tokenizer, { vocabulary, none, latestFirst, window, stride }) {
  let begin = tokenizer.token_to_id("<|0.00|>");
  if (begin === undefined) {
    if (none === null || none + 1 + Math.floor(window / stride) >= vocabulary) return null;
    begin = none + 1;
  }
  if (begin >= vocabulary) return null;
  return new Timestamps({ begin, end: vocabulary, stride, latestFirst: latestFirst === null ? null : begin + latestFirst, none });
}

/** Where timestamps may stand in an answer: the rules of edgepeft's Python runtime, which are those of OpenAI's whisper. */
export class TimestampRules {
  #marks;
  #textEnd;
  // Whether the last token, and the one before it, was a timestamp; before the first token there is nothing to end.
  #last = true;
  #before = true;
  /** @type {number | null} */ #latest = null;

  /** @param {Timestamps} marks @param {number} textEnd  Tokens below it are text. */
  constructor(marks, textEnd) {
    this.#marks = marks;
    this.#textEnd = textEnd;
  }

  /** Logits `[vocabulary]` of the first token, changed in place. @param {Float32Array} logits */
  first(logits) {
    const { begin, latestFirst } = this.#marks;
    forbid(logits, 0, begin);
    if (latestFirst !== null) forbid(logits, latestFirst + 1, logits.length);
  }

  /** Logits `[vocabulary]` behind one more token, changed in place. @param {number} token @param {Float32Array} logits */
  after(token, logits) {
    const { begin, none } = this.#marks;
    const mark = token >= begin;
    if (none !== null) forbid(logits, none, none + 1);
    [this.#before, this.#last] = [this.#last, mark];
    const opened = mark && this.#before;
    if (opened)
      forbid(logits, begin, logits.length); // text, or the end
    else if (mark) forbid(logits, 0, this.#textEnd); // the begin of the next part, or the end
    if (mark) this.#latest = token;
    if (this.#latest !== null) forbid(logits, begin, this.#latest + (mark && !opened ? 0 : 1));
    if (logSum(logits.subarray(begin)) > logits.subarray(0, begin).reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY)) {
      forbid(logits, 0, begin);
    }
  }
}

/** @param {Float32Array} logits @param {number} from @param {number} to */
const forbid = (logits, from, to) => logits.fill(Number.NEGATIVE_INFINITY, from, Math.max(from, to));

/** The logarithm of the sum of exponentials. @param {Float32Array} logits */
export function logSum(logits) {
  const top = logits.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  if (!Number.isFinite(top)) return Number.NEGATIVE_INFINITY;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - top);
  return top + Math.log(sum);
}

/**
 * The parts that timestamps cut an answer into, and where one more begins of which nothing was written: Whisper says so that a window
 * ends in the middle of speech. Where an answer has one timestamp, which the rules made it begin with, it is one part without times.
 *
 * @param {readonly number[]} tokens  Without the one that ended it. @param {Timestamps} marks @param {(tokens: number[]) => string} decode
 * @returns {{ parts: Part[], rest: number | null }}
 */
export function partsOf(tokens, marks, decode) {
  /** @type {Part[]} */ const parts = [];
  /** @type {number[]} */ let text = [];
  let since = 0;
  let opened = false;
  for (const token of tokens) {
    if (!marks.has(token)) {
      text.push(token);
      continue;
    }
    const at = marks.samples(token);
    if (text.length) parts.push({ start: since, end: at, tokens: text, text: decode(text) });
    [since, opened, text] = [at, text.length === 0, []];
  }
  if (text.length) {
    const alone = tokens.filter((token) => marks.has(token)).length === 1;
    return { parts: [...parts, { start: alone ? 0 : since, end: null, tokens: text, text: decode(text) }], rest: null };
  }
  return { parts, rest: opened && parts.length ? since : null };
}

/** Parts whose texts together have `length` characters at most: a stop text, and what is behind it, is cut off. @param {Part[]} parts @param {number} length */
export function upTo(parts, length) {
  let left = length;
  return parts.flatMap((part) => {
    const text = part.text.slice(0, left);
    left -= text.length;
    return text ? [{ ...part, text }] : [];
  });
}
