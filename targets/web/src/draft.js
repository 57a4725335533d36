/**
 * Drafts by prompt lookup: what followed the last few tokens where they stood before is likely to follow again. Several tokens are
 * then run at once. The rules are those of edgepeft/runtime/generation/draft.py.
 */

/** Tokens of the longest draft. */
const LONGEST = 15;
/** The last tokens that are looked up: the longest that is found counts. */
const SIZES = [4, 3, 2];
/** A match of so many tokens is a kind of its own: a passage that is being copied. */
const PASSAGE = 8;
/** The share of a draft's tokens that turn out right, by the length of the match, before anything is known of a text. */
const PRIOR = /** @type {const} */ ({ 2: 0.4, 3: 0.6, 4: 0.7, [PASSAGE]: 0.85 });
const PRIOR_WEIGHT = 4;
/** What one draft token weighs when the next is seen: some ten count. */
const FORGET = 0.9;
/** A run over one token more costs this much of a run over one, until it was measured. */
const ASSUMED_SLOPE = 0.15;
/** Measurements kept for each number of tokens, and how many runs later they no longer count. */
const KEPT = 8;
const STALE = 256;

/** @param {number[]} values */
const median = (values) => /** @type {number} */ ([...values].sort((a, b) => a - b)[values.length >> 1]);

/** What a run over 1, 2, 3, … tokens costs here, learned from the runs themselves. */
export class RunCosts {
  /** @type {Map<number, { runs: number, last: number, times: number[] }>} */ #seen = new Map();
  #runs = 0;

  /** A run took so long; the first over a number of tokens does not count, as memory is planned then. @param {number} tokens @param {number} time */
  add(tokens, time) {
    this.#runs += 1;
    const seen = this.#seen.get(tokens) ?? { runs: 0, last: 0, times: [] };
    this.#seen.set(tokens, seen);
    seen.runs += 1;
    if (seen.runs === 1) return;
    seen.times = [...seen.times, time].slice(-KEPT);
    seen.last = this.#runs;
  }

  /**
   * The cost of a run over `tokens` tokens by that of one. What was not measured lies on the line between its neighbours; beyond the
   * last one, it grows by the slope so far.
   *
   * @param {number} tokens
   */
  of(tokens) {
    const one = this.#seen.get(1)?.times ?? [];
    const known = [...this.#seen]
      .filter(([count, { last, times }]) => count > 1 && one.length && times.length && this.#runs - last < STALE)
      .map(([count, { times }]) => ({ count, ratio: Math.max(1, median(times) / Math.max(median(one), Number.MIN_VALUE)) }))
      .sort((a, b) => a.count - b.count);
    // A longer run costs no less than a shorter one: what says otherwise was a busy moment.
    const points = [{ count: 1, ratio: 1 }, ...known.map(({ count }, i) => ({ count, ratio: Math.min(...known.slice(i).map((each) => each.ratio)) }))];
    const above = points.find(({ count }) => count > tokens);
    const below = /** @type {{ count: number, ratio: number }} */ (points.findLast(({ count }) => count <= tokens));
    if (above) return below.ratio + ((above.ratio - below.ratio) * (tokens - below.count)) / (above.count - below.count);
    const slope = below.count > 1 ? (below.ratio - 1) / (below.count - 1) : ASSUMED_SLOPE;
    return below.ratio + slope * (tokens - below.count);
  }
}

/** Looks up what may follow one sequence; `add` each token as it is chosen. */
export class Drafter {
  /** @type {number[]} */ #tokens = [];
  /** The last tokens of some place → the place behind it, the latest one. @type {Map<string, number>} */ #places = new Map();
  /** @type {number[]} */ #proposal = [];
  /** @type {keyof typeof PRIOR} */ #match = 2;
  /** @type {Record<number, number>} */ #right = Object.fromEntries(Object.entries(PRIOR).map(([match, share]) => [match, share * PRIOR_WEIGHT]));
  /** @type {Record<number, number>} */ #seen = Object.fromEntries(Object.keys(PRIOR).map((match) => [match, PRIOR_WEIGHT]));

  /** @param {number[]} prompt @param {RunCosts} costs */
  constructor(prompt, costs) {
    this.costs = costs;
    for (const token of prompt) this.add(token);
  }

  /** A token stands behind the others. @param {number} token */
  add(token) {
    for (const size of SIZES) if (this.#tokens.length >= size) this.#places.set(this.#tokens.slice(-size).join(), this.#tokens.length);
    this.#tokens.push(token);
  }

  /** What may follow, as much of it as is worth a run. @param {number} most @returns {number[]} */
  draft(most) {
    this.#propose();
    const share = (this.#right[this.#match] ?? 0) / (this.#seen[this.#match] ?? 1);
    let [best, speed, tokens, likely] = [0, 1, 1, 1];
    for (let length = 1; length <= Math.min(most, this.#proposal.length); length += 1) {
      likely *= share;
      tokens += likely;
      const found = tokens / this.costs.of(length + 1);
      if (found > speed) [best, speed] = [length, found];
    }
    return this.#proposal.slice(0, best);
  }

  /** Learns from what was chosen how good the last proposal was, whether it was run or not. @param {number[]} chosen */
  judge(chosen) {
    for (const [i, token] of chosen.entries()) {
      if (i >= this.#proposal.length) return;
      const same = this.#proposal[i] === token;
      this.#seen[this.#match] = (this.#seen[this.#match] ?? 0) * FORGET + 1;
      this.#right[this.#match] = (this.#right[this.#match] ?? 0) * FORGET + Number(same);
      if (!same) return;
    }
  }

  #propose() {
    const tokens = this.#tokens;
    this.#proposal = [];
    for (const size of SIZES) {
      const place = tokens.length >= size ? this.#places.get(tokens.slice(-size).join()) : undefined;
      if (place === undefined) continue;
      const followed = tokens.slice(place);
      // A text that repeats itself goes on as it began.
      this.#proposal = Array.from({ length: LONGEST }, (_, i) => /** @type {number} */ (followed[i % followed.length]));
      const passage = size === SIZES[0] && place >= PASSAGE && tokens.slice(-PASSAGE).every((token, i) => token === tokens[place - PASSAGE + i]);
      this.#match = passage ? PASSAGE : /** @type {2 | 3 | 4} */ (size);
      return;
    }
  }
}
