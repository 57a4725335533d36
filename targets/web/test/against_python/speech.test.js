/**
 * A bundle that writes down speech: EDGEPEFT_TEST_BUNDLE is a folder that `edgepeft web prepare` wrote, EDGEPEFT_TEST_EXPECTED a JSON
 * file with what Python gives: `{waves, rate, frames, cases: [{wave, adapter, language, task, tokens, heard}], long: {wave, cuts, tokens},
 * timed: [{wave, adapter, options, text, segments}]}`; EDGEPEFT_TEST_TIMED is the folder of a bundle with timestamps. The last of `timed`'s
 * waves is the long one.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { InputError, openBundle } from "../../src/index.js";
import { LogMel } from "../../src/log_mel.js";

const expected = JSON.parse(await readFile(process.env.EDGEPEFT_TEST_EXPECTED ?? "", "utf8"));
const waves = expected.waves.map((/** @type {number[]} */ wave) => Float32Array.from(wave));
/** @type {import("../../src/index.js").Runtime} */
let model;
before(async () => {
  model = await openBundle(process.env.EDGEPEFT_TEST_BUNDLE ?? "");
});
after(() => model.close());

test("frames are Python's", () => {
  const mine = new LogMel({ rate: expected.rate, samples: expected.rate, bins: 80, size: 400, hop: 160 }).compute(waves[0]);
  const worst = Math.max(...mine.map((value, i) => Math.abs(value - expected.frames[i])));
  assert.ok(worst < 1e-4, `${worst}`);
});

test("tokens and languages are Python's, adapter by adapter", async () => {
  for (const { wave, adapter, language, task, tokens, heard } of expected.cases) {
    await model.use(adapter);
    const pieces = /** @type {string[]} */ ([]);
    const found = await model.transcribe(waves[wave], {
      ...(language === null ? {} : { language }),
      task,
      maxNewTokens: 12,
      onText: (piece) => pieces.push(piece),
    });
    assert.deepEqual([found.segments[0]?.tokens, found.language], [tokens, heard]);
    assert.equal(pieces.join("").trim(), found.text);
  }
});

test("long sound is cut where Python cuts it", async () => {
  await model.use("small");
  const { wave, cuts, tokens } = expected.long;
  const found = await model.transcribe(Float32Array.from(wave), { language: "en", maxNewTokens: 4 });
  assert.deepEqual(
    found.segments.map(({ start, end }) => [start, end]),
    cuts,
  );
  assert.deepEqual(
    found.segments.map((segment) => segment.tokens),
    tokens,
  );
});

test("timestamps, second tries and likelihoods are Python's", async () => {
  const timed = await openBundle(process.env.EDGEPEFT_TEST_TIMED ?? "");
  const all = [...waves, Float32Array.from(expected.long.wave)];
  for (const { wave, adapter, options, text, segments } of expected.timed) {
    await timed.use(adapter);
    const found = await timed.transcribe(all[wave], { language: "en", maxNewTokens: 16, ...options });
    const what = `${adapter} ${wave} ${JSON.stringify(options)}`;
    const said = (/** @type {any} */ each) => [each.start, each.end, each.text, each.tokens];
    assert.deepEqual(found.segments.map(said), segments.map(said), what);
    assert.equal(found.text, text, what);
    for (const [i, { confidence }] of found.segments.entries()) {
      const { temperature, meanLogprob, compressionRatio, noSpeech } = segments[i];
      assert.equal(confidence.temperature, temperature, what);
      assert.ok(Math.abs(confidence.meanLogprob - meanLogprob) < 1e-3, `${what}: ${confidence.meanLogprob} for ${meanLogprob}`);
      assert.ok(
        Math.abs(confidence.compressionRatio - compressionRatio) <= 0.15 * compressionRatio, // another zlib: up to three bytes of thirty
        `${what}: ${confidence.compressionRatio} for ${compressionRatio}`,
      );
      assert.ok(Math.abs((confidence.noSpeech ?? -1) - noSpeech) < 1e-3, `${what}: ${confidence.noSpeech} for ${noSpeech}`);
    }
  }
  await timed.close();
});

test("text is told once it stays where there may be second tries, and as it comes where there are none", async () => {
  const timed = await openBundle(process.env.EDGEPEFT_TEST_TIMED ?? "");
  for (const fallback of /** @type {const} */ (["all", undefined])) {
    const pieces = /** @type {string[]} */ ([]);
    const found = await timed.transcribe(waves[1], {
      language: "en",
      maxNewTokens: 16,
      onText: (piece) => pieces.push(piece),
      ...(fallback === undefined ? {} : { fallback }),
    });
    assert.equal(pieces.join("").trim(), found.text);
    assert.equal(pieces.length > 1, fallback === undefined, `${pieces}`);
  }
  await timed.close();
});

test("what cannot be meant is refused", async () => {
  const refused = async (/** @type {any} */ wave, /** @type {any} */ options, /** @type {RegExp} */ said) =>
    assert.rejects(model.transcribe(wave, options), (error) => error instanceof InputError && said.test(error.message));
  await refused(new Float32Array(0), {}, /not an empty one/);
  await refused([0, 1], {}, /Float32Array/);
  await refused(Float32Array.of(0, Number.NaN), {}, /NaN or infinity at sample 1/);
  await refused(waves[0], { samplingRate: 44_100 }, /44100 samples a second and the model takes 16000/);
  await refused(waves[0], { language: "tlh" }, /language tlh is none of this model's: de, en, fr, ja/);
  await refused(waves[0], { task: "sing" }, /task must be one of transcribe, translate/);
  await refused(waves[0], { timestamps: true }, /vocabulary has no timestamps .*leave out timestamps/);
  await refused(waves[0], { fallback: "sometimes" }, /fallback must be one of loops, all, off, found sometimes/);
  await refused(waves[0], { seed: -1 }, /seed must be a whole number/);
  await refused(waves[0], { maxNewTokens: 1000 }, /maxNewTokens must be a whole number from 1 to/);
  await assert.rejects(model.generate("a text"), /writes down speech: call transcribe/);
});
