/** Text that comes piece by piece as tokens are generated. */

const CONTEXT = 6;
const UNFINISHED = "\ufffd";

/** Turns tokens into pieces of text that never split a character or a stop string. */
export class Pieces {
  /** @type {number[]} */ tokens = [];
  text = "";
  stopped = false;
  #ids;
  #start = 0;
  #read;
  #held = "";

  /** @param {(tokens: number[]) => string} decode @param {number[]} prompt @param {string[]} stop */
  constructor(decode, prompt, stop) {
    this.decode = decode;
    this.stop = stop;
    // Some tokenizers drop a text's leading space: the first piece is decoded after the prompt's last tokens.
    this.#ids = prompt.slice(-CONTEXT);
    this.#read = this.#ids.length;
  }

  /** What a token adds to the text, if anything yet. @param {number} token */
  push(token) {
    this.tokens.push(token);
    this.#ids.push(token);
    const fresh = this.#fresh();
    if (fresh.endsWith(UNFINISHED)) return "";
    [this.#start, this.#read] = [this.#read, this.#ids.length];
    return this.#release(fresh, false);
  }

  /** What was held back; nothing after a stop string. */
  flush() {
    return this.stopped ? "" : this.#release(this.#fresh(), true);
  }

  #fresh() {
    const before = this.decode(this.#ids.slice(this.#start, this.#read));
    return this.decode(this.#ids.slice(this.#start)).slice(before.length);
  }

  /** @param {string} fresh @param {boolean} last */
  #release(fresh, last) {
    const whole = this.#held + fresh;
    const places = this.stop.map((text) => whole.indexOf(text)).filter((place) => place >= 0);
    let out = whole;
    if (places.length) {
      this.stopped = true;
      out = whole.slice(0, Math.min(...places));
    } else if (!last) {
      out = whole.slice(0, whole.length - Math.max(0, ...this.stop.map((text) => overlap(whole, text))));
    }
    this.#held = places.length ? "" : whole.slice(out.length);
    this.text += out;
    return out;
  }
}

/** Length of the longest end of `text` with which `stop` begins. @param {string} text @param {string} stop */
function overlap(text, stop) {
  let size = Math.min(text.length, stop.length - 1);
  while (size > 0 && !text.endsWith(stop.slice(0, size))) size--;
  return size;
}
