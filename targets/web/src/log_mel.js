/** From a wave to the log-mel frames that Whisper reads, as its feature extractor in transformers computes them. */

import { BundleError } from "./errors.js";

const FILE = "preprocessor_config.json";
const MOST = 2 ** 22;
/** Slaney's scale: 3 mels for 200 Hz up to 1 kHz, from there on 27 for a factor of 6.4 (Auditory Toolbox, 1998). */
const LINEAR = 200 / 3;
const TURN_HZ = 1000;
const TURN_MEL = 15;
const STEP = Math.log(6.4) / 27;
const HIGHEST_HZ = 8000;
const LEAST_POWER = 1e-10;
const RANGE = 8;

/** @param {number} hertz */
const toMel = (hertz) => (hertz < TURN_HZ ? hertz / LINEAR : TURN_MEL + Math.log(hertz / TURN_HZ) / STEP);
/** @param {number} mel */
const toHertz = (mel) => (mel < TURN_MEL ? mel * LINEAR : TURN_HZ * Math.exp(STEP * (mel - TURN_MEL)));

/** How a window of sound becomes frames. */
export class LogMel {
  /** @param {{ rate: number, samples: number, bins: number, size: number, hop: number }} settings  Samples a second, of a window; mel filters; samples of a transform, and between two. */
  constructor({ rate, samples, bins, size, hop }) {
    this.rate = rate;
    this.samples = samples;
    this.bins = bins;
    this.size = size;
    this.hop = hop;
    this.frames = Math.floor(samples / hop);
    this.filters = filters(rate, bins, size);
    this.window = Float64Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.cos = Float64Array.from({ length: size }, (_, i) => Math.cos((2 * Math.PI * i) / size));
    this.sin = Float64Array.from({ length: size }, (_, i) => Math.sin((2 * Math.PI * i) / size));
  }

  /**
   * Frames of a wave, `[bins, frames]` row by row; silence fills the window.
   *
   * @param {Float32Array} wave  At most {@link samples}, of -1 to 1.
   * @returns {Float32Array}
   */
  compute(wave) {
    const { size, hop, bins, frames, samples } = this;
    const half = size >> 1;
    const found = new Float64Array(bins * frames).fill(Math.log10(LEAST_POWER));
    const piece = new Float64Array(size);
    const powers = new Float64Array(half + 1);
    let most = Math.log10(LEAST_POWER);
    for (let frame = 0; frame < frames; frame++) {
      let heard = false;
      for (let i = 0; i < size; i++) {
        const place = mirrored(frame * hop + i - half, samples);
        const value = (wave[place] ?? 0) * (this.window[i] ?? 0);
        piece[i] = value;
        heard ||= value !== 0;
      }
      if (!heard) continue; // silence is the least power in every bin
      this.#powers(piece, powers);
      for (const [bin, { first, weights }] of this.filters.entries()) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += /** @type {number} */ (weights[i]) * /** @type {number} */ (powers[first + i]);
        const value = Math.log10(Math.max(sum, LEAST_POWER));
        found[bin * frames + frame] = value;
        if (value > most) most = value;
      }
    }
    return Float32Array.from(found, (value) => (Math.max(value, most - RANGE) + 4) / 4);
  }

  /** Squared magnitudes of the Fourier transform of `piece`. @param {Float64Array} piece @param {Float64Array} powers */
  #powers(piece, powers) {
    const { size, cos, sin } = this;
    for (let bin = 0; bin < powers.length; bin++) {
      let real = 0;
      let imaginary = 0;
      for (let i = 0, turn = 0; i < size; i++) {
        const value = /** @type {number} */ (piece[i]);
        real += value * /** @type {number} */ (cos[turn]);
        imaginary += value * /** @type {number} */ (sin[turn]);
        turn += bin;
        if (turn >= size) turn -= size;
      }
      powers[bin] = real * real + imaginary * imaginary;
    }
  }
}

/** A place of a window of so many samples that is reflected at its ends. @param {number} place @param {number} samples */
function mirrored(place, samples) {
  if (place < 0) return -place;
  return place < samples ? place : 2 * (samples - 1) - place;
}

/**
 * Triangular filters of equal area, evenly spaced on Slaney's scale from 0 to 8 kHz: where each is above 0, and its weights there.
 *
 * @param {number} rate @param {number} bins @param {number} size
 */
function filters(rate, bins, size) {
  const edges = Array.from({ length: bins + 2 }, (_, i) => toHertz((toMel(HIGHEST_HZ) * i) / (bins + 1)));
  const width = rate / size;
  return Array.from({ length: bins }, (_, bin) => {
    const [low = 0, middle = 0, high = 0] = edges.slice(bin, bin + 3);
    const weights = Array.from({ length: (size >> 1) + 1 }, (_value, i) => {
      const slope = Math.min((i * width - low) / (middle - low), (high - i * width) / (high - middle));
      return (Math.max(0, slope) * 2) / (high - low);
    });
    const first = Math.max(
      0,
      weights.findIndex((weight) => weight > 0),
    );
    const last = weights.findLastIndex((weight) => weight > 0);
    return { first, weights: weights.slice(first, last + 1) };
  });
}

/**
 * What `preprocessor_config.json` of a bundle says.
 *
 * @param {string} name  Where the bundle is from.
 * @param {string | null} content  Of the file.
 * @param {readonly (string | number)[]} shape  Of the graph's input.
 * @throws {BundleError} The file is missing, a number in it cannot be meant, or its frames are not those that the graph takes.
 */
export function readLogMel(name, content, shape) {
  const where = `${name}/${FILE}`;
  if (content === null) throw new BundleError(`${name} holds no ${FILE}, which says how sound becomes what the model reads; export it again`);
  /** @type {Record<string, any>} */
  let said;
  try {
    said = JSON.parse(content);
  } catch (error) {
    throw new BundleError(`${where} is not JSON: ${/** @type {Error} */ (error).message}`, { cause: error });
  }
  if (said.do_normalize || said.dither) throw new BundleError(`${where} asks for do_normalize or dither, which are not computed here`);
  const usual = { sampling_rate: 16_000, feature_size: 80, n_fft: 400, hop_length: 160, chunk_length: 30 };
  const [rate = 0, bins = 0, size = 0, hop = 0, seconds = 0] = Object.entries(usual).map(([key, otherwise]) => {
    const value = said[key] ?? otherwise;
    if (!Number.isInteger(value) || value < 1 || value > MOST) throw new BundleError(`${where}: ${key} must be a whole number from 1 to ${MOST}`);
    return value;
  });
  const samples = rate * seconds;
  const frames = Math.floor(samples / hop);
  if (samples > MOST || shape[1] !== bins || shape[2] !== frames) {
    throw new BundleError(`${where} gives frames of shape [${bins}, ${frames}]; the graph takes [${shape.slice(1)}]`);
  }
  return new LogMel({ rate, samples, bins, size, hop });
}
