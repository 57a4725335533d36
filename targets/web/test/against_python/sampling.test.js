/** Draws and picks, against numpy and Python's sampler: EDGEPEFT_TEST_GENERATED holds `{draws, picks}`. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { BundleError } from "../../src/index.js";
import { Random } from "../../src/random.js";
import { chooseSampling, Sampler } from "../../src/sampling.js";

const { draws, picks } = JSON.parse(await readFile(process.env.EDGEPEFT_TEST_GENERATED ?? "", "utf8"));
const GREEDY = { sample: false, temperature: 1, topK: 0, topP: 1, repetitionPenalty: 1 };

test("draws are numpy's, bit for bit", () => {
  const seeds = [
    [0, 0],
    [1, 0],
    [2n ** 70n + 5n, 0],
    [1, 2, 3, 4, 5, 6],
  ];
  draws.forEach((/** @type {number[]} */ expected, /** @type {number} */ i) => {
    const random = new Random(seeds[i] ?? []);
    assert.deepEqual(
      expected.map(() => random.random()),
      expected,
    );
  });
});

for (const { options, prompt, logits, tokens } of picks) {
  test(`tokens are Python's for ${JSON.stringify(options)}`, () => {
    const { top_k: topK = 0, top_p: topP = 1, repetition_penalty: repetitionPenalty = 1, temperature, seed = null } = options;
    const sampler = new Sampler({ temperature, topK, topP, repetitionPenalty, seed }, prompt);
    assert.deepEqual(
      logits.map((/** @type {number[]} */ row) => sampler.pick(Float32Array.from(row))),
      tokens,
    );
  });
}

test("tokens come as often as they are probable", () => {
  const logits = Float32Array.from([Math.log(0.5), Math.log(0.3), Math.log(0.2)]);
  const sampler = new Sampler({ temperature: 1, topK: 0, topP: 1, repetitionPenalty: 1, seed: 1 }, []);
  const counts = [0, 0, 0];
  for (let i = 0; i < 5000; i++) {
    const token = sampler.pick(logits);
    counts[token] = (counts[token] ?? 0) + 1;
  }
  // Four standard errors of a share of 5000 draws are 0.03.
  for (const [token, share] of [0.5, 0.3, 0.2].entries()) {
    assert.ok(Math.abs(/** @type {number} */ (counts[token]) / 5000 - share) < 0.03, `${counts}`);
  }
});

test("what is not given decides as in Python", () => {
  assert.equal(chooseSampling({}, GREEDY).temperature, 0);
  assert.equal(chooseSampling({}, { ...GREEDY, sample: true, temperature: 0.7 }).temperature, 0.7);
  assert.equal(chooseSampling({ topK: 5 }, GREEDY).temperature, 1);
  assert.equal(chooseSampling({ temperature: 0 }, { ...GREEDY, sample: true }).temperature, 0);
  assert.equal(chooseSampling({ temperature: 0 }, { ...GREEDY, repetitionPenalty: 1.2 }).repetitionPenalty, 1.2);
});

for (const wrong of [NaN, Infinity]) {
  test(`logits of ${wrong} are an error`, () => {
    const sampler = new Sampler({ temperature: 0, topK: 0, topP: 1, repetitionPenalty: 1, seed: 1 }, []);
    assert.throws(() => sampler.pick(Float32Array.of(1, wrong, 2)), BundleError);
  });
}
