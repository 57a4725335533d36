/** Long sound, cut where it is quiet: the places of edgepeft's Python runtime. */

/** The last part of a window in which a quiet place is looked for, and the length that is looked at, in seconds. */
const LOOK_BACK = 5;
const QUIET = 0.2;

/**
 * Where a wave is cut into parts of at most `most` samples: at the quietest place of the last five seconds of each.
 *
 * @param {Float32Array} wave @param {number} rate @param {number} most
 * @returns {Generator<[number, number], void>}
 */
export function* windows(wave, rate, most) {
  let start = 0;
  const length = Math.max(1, Math.trunc(QUIET * rate));
  while (wave.length - start > most) {
    const first = start + Math.max(most - Math.trunc(LOOK_BACK * rate), Math.trunc(most / 2));
    const stop = start + most;
    let end = stop;
    let power = 0;
    let [least, largest] = [Number.POSITIVE_INFINITY, 0];
    for (let place = first; place < stop; place++) {
      power += (wave[place] ?? 0) ** 2;
      const begin = place - length + 1;
      if (begin < first) continue;
      const quiet = Math.max(0, power);
      if (quiet <= least) {
        least = quiet;
        end = begin + Math.trunc(length / 2);
      }
      largest = Math.max(largest, quiet);
      power -= (wave[begin] ?? 0) ** 2;
    }
    if (!(least < largest)) end = stop; // one place is as quiet as any other
    yield [start, end];
    start = end;
  }
  yield [start, wave.length];
}
