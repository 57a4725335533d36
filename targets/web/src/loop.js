/** The loop of generation: pick a token, tell its text, feed it, until an end. */

/**
 * @typedef {import("./pieces.js").Pieces} Pieces
 * @typedef {import("./sampling.js").Sampler} Sampler
 * @typedef {import("./tokenizer.js").TextEncoder} TextEncoder
 *
 * @typedef {object} Written
 * @property {string} text
 * @property {number[]} tokens  With the one that ended it.
 * @property {"eos" | "length" | "stop" | "cancelled"} finish
 * @property {number | null} tokensPerSecond  Of the tokens after the first.
 */

/** Tokens as text, without special ones. @param {TextEncoder["tokenizer"]} tokenizer @returns {(tokens: number[]) => string} */
export const decoder = (tokenizer) => (tokens) =>
  tokens.length ? tokenizer.decode(tokens, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";

/**
 * @param {object} parts
 * @param {Float32Array} parts.logits  Of the first token.
 * @param {(token: number) => Promise<Float32Array>} parts.feed  A token to the logits of the next one.
 * @param {Sampler} parts.sampler
 * @param {Pieces} parts.pieces
 * @param {number[]} parts.ends  Tokens that end a text.
 * @param {number[]} [parts.stops]  Special tokens that were given as stop texts.
 * @param {number} parts.room  How many tokens at most.
 * @param {(piece: string) => void} parts.onText
 * @param {AbortSignal | undefined} parts.signal
 * @returns {Promise<Written>}
 */
export async function write({ logits, feed, sampler, pieces, ends, stops = [], room, onText, signal }) {
  const begin = performance.now();
  /** @type {Written["finish"]} */
  let finish = "length";
  for (;;) {
    const token = sampler.pick(logits);
    if (stops.includes(token) || ends.includes(token)) {
      finish = stops.includes(token) ? "stop" : "eos";
      pieces.tokens.push(token);
      break;
    }
    const piece = pieces.push(token);
    if (piece) onText(piece);
    if (pieces.stopped) finish = "stop";
    else if (signal?.aborted) finish = "cancelled";
    if (pieces.stopped || signal?.aborted || pieces.tokens.length >= room) break;
    logits = await feed(token);
  }
  const seconds = (performance.now() - begin) / 1e3;
  const rest = pieces.flush();
  if (rest) onText(rest);
  if (pieces.stopped) finish = "stop"; // what the last, unfinished character hid
  const steps = pieces.tokens.length - 1;
  return { text: pieces.text, tokens: pieces.tokens, finish, tokensPerSecond: steps > 0 ? steps / seconds : null };
}
