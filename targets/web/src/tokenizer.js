/** The bundle's own tokenizer, padding and truncating as edgepeft's Python runtime does. */

import { Tokenizer } from "@huggingface/tokenizers";

import { BundleError, InputError } from "./errors.js";

/**
 * @typedef {string | [string, string]} Text  A text, or a pair of texts.
 * @typedef {{ ids: number[], types: number[], truncated: boolean }} Encoded
 * @typedef {{ ids: number[][], mask: number[][], types: number[][], truncated: number[] }} Batch
 *   Rows of equal length; `truncated` holds the positions of the texts that were cut.
 */

/** Turns texts into token ids. */
export class TextEncoder {
  /**
   * @param {Uint8Array} tokenizer  `tokenizer.json`
   * @param {Uint8Array | null} config  `tokenizer_config.json`
   * @param {number | null} maxLength  Longest input in tokens.
   * @param {string} where  For messages.
   * @param {number | null} [padId]  The base's padding token, where its configuration names one.
   */
  constructor(tokenizer, config, maxLength, where, padId = null) {
    /** @type {Record<string, any>} */
    let settings;
    try {
      settings = config === null ? {} : JSON.parse(new TextDecoder().decode(config));
      this.tokenizer = new Tokenizer(JSON.parse(new TextDecoder().decode(tokenizer)), settings);
    } catch (error) {
      throw new BundleError(`${where}: tokenizer.json cannot be used here: ${/** @type {Error} */ (error).message}`, { cause: error });
    }
    this.maxLength = maxLength;
    this.padId = padId !== null && this.tokenizer.id_to_token(padId) !== undefined ? padId : this.#padId(settings);
    this.unknown = this.tokenizer.model?.unk_token_id ?? 0;
  }

  /** The pad token the model was trained with; without one, token 0 (the mask hides it). @param {Record<string, any>} config */
  #padId(config) {
    const named = typeof config.pad_token === "object" ? config.pad_token?.content : config.pad_token;
    for (const token of [named, "[PAD]", "<pad>"]) {
      const id = typeof token === "string" ? this.tokenizer.token_to_id(token) : undefined;
      if (id !== undefined) return id;
    }
    return 0;
  }

  /**
   * One text's ids, cut to the longest input, special tokens included.
   *
   * @param {Text} text
   * @param {number | null} [maxLength]  In place of the longest input.
   * @returns {Encoded}
   * @throws {InputError} For anything that is not a text.
   */
  encode(text, maxLength = this.maxLength) {
    checkText(text);
    const [first, second] = typeof text === "string" ? [text, null] : text;
    const whole = this.tokenizer.encode(first, { text_pair: second, return_token_type_ids: true });
    if (maxLength === null || whole.ids.length <= maxLength) {
      return { ids: whole.ids, types: whole.token_type_ids, truncated: false };
    }
    const cut = this.#cut(first, second, maxLength);
    return { ...cut, truncated: true };
  }

  /** @param {string} first @param {string | null} second @param {number} length */
  #cut(first, second, length) {
    const plain = { add_special_tokens: false };
    let a = this.tokenizer.tokenize(first, plain);
    let b = second === null ? null : this.tokenizer.tokenize(second, plain);
    const special = this.tokenizer.post_processor?.post_process([], second === null ? null : [], true).tokens.length ?? 0;
    const room = Math.max(0, length - special);
    if (b === null) {
      a = a.slice(0, room);
    } else {
      const [n, m] = longestFirst(a.length, b.length, room);
      [a, b] = [a.slice(0, n), b.slice(0, m)];
    }
    const done = this.tokenizer.post_processor?.post_process(a, b, true);
    const tokens = done?.tokens ?? [...a, ...(b ?? [])];
    const ids = tokens.map((/** @type {string} */ token) => this.tokenizer.token_to_id(token) ?? this.unknown);
    return { ids, types: done?.token_type_ids ?? ids.map(() => 0) };
  }

  /**
   * How many tokens a prompt takes at the begin of a text, those before it included, as sentence-transformers counts.
   *
   * @param {string} prompt
   * @param {number | null} maxLength
   */
  promptLength(prompt, maxLength) {
    const { ids } = this.encode(prompt, maxLength);
    // A token that ends every text (SEP, EOS) stands behind the text that follows.
    return ids.length - (this.tokenizer.get_added_tokens_decoder().get(ids.at(-1) ?? -1)?.special ? 1 : 0);
  }

  /**
   * Rows padded on the right to the longest.
   *
   * @param {Text[]} texts
   * @param {number | null} [maxLength]  In place of the longest input.
   * @returns {Batch}
   */
  encodeBatch(texts, maxLength = this.maxLength) {
    if (!Array.isArray(texts) || !texts.length) throw new InputError("no texts were given: pass a list of texts");
    const rows = texts.map((text) => this.encode(text, maxLength));
    const length = Math.max(...rows.map((row) => row.ids.length));
    /** @param {number[]} row @param {number} fill */
    const padded = (row, fill) => [...row, ...Array(length - row.length).fill(fill)];
    return {
      ids: rows.map((row) => padded(row.ids, this.padId)),
      mask: rows.map((row) =>
        padded(
          row.ids.map(() => 1),
          0,
        ),
      ),
      types: rows.map((row) => padded(row.types, 0)),
      truncated: rows.flatMap((row, position) => (row.truncated ? [position] : [])),
    };
  }
}

/**
 * How many tokens of a pair stay where the longer one is cut first; the rule of Hugging Face's tokenizers.
 *
 * @param {number} a @param {number} b @param {number} room
 * @returns {[number, number]}
 */
export function longestFirst(a, b, room) {
  const [short, long] = a < b ? [a, b] : [b, a];
  if (short + long <= room) return [a, b];
  let n = short;
  let m = short > room ? short : Math.max(short, room - short);
  if (n + m > room) {
    n = Math.floor(room / 2);
    m = n + (room % 2);
  }
  return a > b ? [m, n] : [n, m];
}

/** @param {unknown} text */
function checkText(text) {
  const parts = Array.isArray(text) && text.length === 2 ? text : [text];
  // A lone surrogate is no character: Python's tokenizer refuses it too.
  if (parts.some((part) => typeof part !== "string" || /\p{Surrogate}/u.test(part))) {
    throw new InputError(`${JSON.stringify(text) ?? text} is not a text (valid Unicode), nor a pair of two texts`);
  }
}
