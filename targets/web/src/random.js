/** numpy's `default_rng`: PCG64 (O'Neill 2014, XSL-RR 128/64) seeded through `SeedSequence`, so that a seed draws the same in both. */

const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** Words of SeedSequence's pool, and the constants of its hash (numpy/random/bit_generator.pyx). */
const POOL = 4;
const HASH = { initA: 0x43b0d7e5, multA: 0x931e8875, initB: 0x8b51f9dd, multB: 0x58f38ded, mixL: 0xca01f9dd, mixR: 0x4973f715 };

/** @param {number} x */
const shifted = (x) => (x ^ (x >>> 16)) >>> 0;
/** @param {number} a @param {number} b */
const times = (a, b) => Math.imul(a, b) >>> 0;

/** A whole number in 32 bits a word, least first; zero is one word. @param {number | bigint} value @returns {number[]} */
function words(value) {
  const found = [];
  for (let rest = BigInt(value); rest > 0n || !found.length; rest >>= 32n) found.push(Number(rest & 0xffffffffn));
  return found;
}

/** `SeedSequence(entropy).generate_state(count)`, in 32 bits a word. @param {number[]} entropy @param {number} count @returns {number[]} */
function seedState(entropy, count) {
  let constant = HASH.initA;
  /** @param {number} value */
  const hashed = (value) => {
    const mixed = (value ^ constant) >>> 0;
    constant = times(constant, HASH.multA);
    return shifted(times(mixed, constant));
  };
  /** @param {number} x @param {number} y */
  const mix = (x, y) => shifted((times(HASH.mixL, x) - times(HASH.mixR, y)) >>> 0);
  const pool = Array.from({ length: POOL }, (_, i) => hashed(entropy[i] ?? 0));
  for (let from = 0; from < POOL; from++) {
    for (let to = 0; to < POOL; to++) if (from !== to) pool[to] = mix(pool[to] ?? 0, hashed(pool[from] ?? 0));
  }
  for (const value of entropy.slice(POOL)) {
    for (let to = 0; to < POOL; to++) pool[to] = mix(pool[to] ?? 0, hashed(value));
  }
  constant = HASH.initB;
  return Array.from({ length: count }, (_, i) => {
    const mixed = ((pool[i % POOL] ?? 0) ^ constant) >>> 0;
    constant = times(constant, HASH.multB);
    return shifted(times(mixed, constant));
  });
}

/** `numpy.random.default_rng(entropy)`, as far as `random()`. */
export class Random {
  #state = 0n;
  #increment;

  /** @param {(number | bigint)[]} entropy  Whole numbers of at least 0. */
  constructor(entropy) {
    const state = seedState(entropy.flatMap(words), 8).map(BigInt);
    /** Two words are a 64-bit number, least first; two of those a 128-bit one, most first. @param {number} at */
    const wide = (at) => {
      const [a = 0n, b = 0n, c = 0n, d = 0n] = state.slice(at, at + 4);
      return (((b << 32n) | a) << 64n) | (d << 32n) | c;
    };
    this.#increment = ((wide(4) << 1n) | 1n) & MASK128;
    this.#step();
    this.#state = (this.#state + wide(0)) & MASK128;
    this.#step();
  }

  #step() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK128;
  }

  /** A number in [0, 1) of 53 bits. */
  random() {
    this.#step();
    const folded = (this.#state >> 64n) ^ (this.#state & MASK64);
    const turn = this.#state >> 122n;
    const word = ((folded >> turn) | (folded << (64n - turn))) & MASK64;
    return Number(word >> 11n) / 2 ** 53;
  }
}

/** A seed that nobody chose. */
export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;
