/** The loop of generation: pick a token, tell its text, feed it, until an end. */

/**
 * @typedef {import("./draft.js").Drafter} Drafter
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
 * @param {(tokens: number[]) => Promise<Float32Array[]>} parts.feed  Tokens to the logits behind each; without a drafter it is one token.
 * @param {(count: number) => void} [parts.forget]  Takes back the last tokens that were fed; a drafter needs it.
 * @param {Drafter} [parts.drafter]  Drafts what is fed behind a token.
 * @param {Sampler} parts.sampler
 * @param {Pieces} parts.pieces
 * @param {number[]} parts.ends  Tokens that end a text.
 * @param {number[]} [parts.stops]  Special tokens that were given as stop texts.
 * @param {number} parts.room  How many tokens at most.
 * @param {(piece: string) => void} parts.onText
 * @param {(token: number, logits: Float32Array) => void} [parts.onToken]  Is told each token and what it was chosen from.
 * @param {AbortSignal | undefined} parts.signal
 * @returns {Promise<Written>}
 */
export async function write({ logits, feed, forget = () => {}, drafter, sampler, pieces, ends, stops = [], room, onText, onToken = () => {}, signal }) {
  const begin = performance.now();
  /** Take a token; what it ends the text with, if it does. @param {Float32Array} scores @returns {Written["finish"] | null} */
  const take = (scores) => {
    const token = sampler.pick(scores);
    onToken(token, scores);
    drafter?.add(token);
    if (stops.includes(token) || ends.includes(token)) {
      pieces.tokens.push(token);
      return stops.includes(token) ? "stop" : "eos";
    }
    const piece = pieces.push(token);
    if (piece) onText(piece);
    if (pieces.stopped) return "stop";
    if (signal?.aborted) return "cancelled";
    return pieces.tokens.length >= room ? "length" : null;
  };
  let finish = take(logits);
  while (finish === null) {
    const had = pieces.tokens.length;
    const draft = drafter?.draft(room - had - 1) ?? [];
    const started = performance.now();
    const rows = await feed([/** @type {number} */ (pieces.tokens[had - 1]), ...draft]);
    drafter?.costs.add(rows.length, performance.now() - started);
    // Each token is chosen from the logits behind those before it, as without a draft; the first that the draft has not ends it.
    for (const [i, row] of rows.entries()) {
      finish = take(row);
      if (finish !== null || pieces.tokens.at(-1) !== draft[i]) break;
    }
    const chosen = pieces.tokens.slice(had);
    forget(rows.length - chosen.length);
    drafter?.judge(chosen);
  }
  const seconds = (performance.now() - begin) / 1e3;
  const rest = pieces.flush();
  if (rest) onText(rest);
  if (pieces.stopped) finish = "stop"; // what the last, unfinished character hid
  const steps = pieces.tokens.length - 1;
  return { text: pieces.text, tokens: pieces.tokens, finish, tokensPerSecond: steps > 0 ? steps / seconds : null };
}
