/** Drafts by prompt lookup, without a model. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Drafter, RunCosts } from "../src/draft.js";
import { write } from "../src/loop.js";
import { Pieces } from "../src/pieces.js";

/** @param {...number} ratios  Of 1, 2, 3, … tokens. */
function measured(...ratios) {
  const costs = new RunCosts();
  for (let turn = 0; turn < 3; turn += 1) for (const [i, ratio] of ratios.entries()) costs.add(i + 1, ratio * 10);
  return costs;
}
const FREE = Array.from({ length: 16 }, () => 1);
const near = (/** @type {number} */ found, /** @type {number} */ wanted) => assert.ok(Math.abs(found - wanted) < 1e-9, `${found}, not ${wanted}`);

test("what followed the last tokens before, repeated where the text repeats itself", () => {
  assert.deepEqual(new Drafter([1, 2, 3, 4, 5, 1, 2], measured(...FREE)).draft(4), [3, 4, 5, 1]);
  assert.deepEqual(new Drafter([7, 8, 7, 8], measured(...FREE)).draft(15), [7, 8, 7, 8, 7, 8, 7, 8, 7, 8, 7, 8, 7, 8, 7]);
  assert.deepEqual(new Drafter([1, 2, 3], measured(...FREE)).draft(15), []);
});

test("no draft where it does not pay", () => {
  assert.deepEqual(new Drafter([1, 2, 3, 4, 5, 1, 2], measured(1, 2, 3)).draft(15), []);
  const drafter = new Drafter([1, 2, 3, 4, 5, 1, 2], measured(1, 1.2, 1.4));
  const first = drafter.draft(15);
  assert.ok(first.length > 0);
  for (let i = 0; i < 20; i += 1) drafter.judge([77]);
  assert.deepEqual(drafter.draft(15), []);
  for (let i = 0; i < 20; i += 1) drafter.judge([3, 4, 5]);
  assert.ok(drafter.draft(15).length > first.length);
});

test("the cost curve", () => {
  near(measured(1, 1.2, 1.6).of(3), 1.6);
  near(measured(1, 1.2, 1.6).of(5), 2.2);
  near(measured(1, 3, 1.4).of(2), 1.4);
  near(new RunCosts().of(1), 1);
});

test("a text written with drafts is the text written without, whatever is drafted", async () => {
  // The "model" follows a fixed text; its logits depend on the tokens that it was fed, so a cache with others shows.
  const text = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6, 7, 8, 5, 6, 1, 3, 5, 6, 7, 8, 2];
  for (const [room, end] of [
    [40, 2],
    [9, 2],
    [40, 9],
    [1, 2],
  ]) {
    const results = [];
    for (const costs of [undefined, measured(...FREE)]) {
      /** @type {number[]} */ const fed = [];
      let runs = 0;
      const next = () => {
        assert.deepEqual(fed, text.slice(0, fed.length), "the cache holds what was chosen");
        return Float32Array.from({ length: 10 }, (_, i) => Number(i === text[fed.length]));
      };
      const written = await write({
        logits: next(),
        feed: async (tokens) => {
          runs += 1;
          const before = fed.length;
          const rows = tokens.map((token, i) => {
            fed.push(token);
            const right = fed.every((each, at) => each === text[at]);
            return right ? next() : Float32Array.from({ length: 10 }, (_, j) => Number(j === i % 10));
          });
          assert.equal(fed.length, before + tokens.length);
          return rows;
        },
        forget: (count) => {
          fed.length -= count;
        },
        ...(costs && { drafter: new Drafter([5, 6, 7, 8], costs) }),
        sampler: /** @type {any} */ ({ pick: (/** @type {Float32Array} */ logits) => logits.indexOf(1) }),
        pieces: new Pieces((tokens) => tokens.join(""), [], []),
        ends: [/** @type {number} */ (end)],
        room: /** @type {number} */ (room),
        onText: () => {},
        signal: undefined,
      });
      results.push({ tokens: written.tokens, text: written.text, finish: written.finish, runs });
    }
    const [plain, drafted] = /** @type {[typeof results[0], typeof results[0]]} */ (results);
    assert.deepEqual({ ...drafted, runs: 0 }, { ...plain, runs: 0 });
    if (room === 40 && end === 2) assert.ok(drafted.runs < plain.runs);
  }
});
