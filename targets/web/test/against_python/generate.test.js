/**
 * Generation, against Python: EDGEPEFT_TEST_CAUSAL is a text-generation bundle that `edgepeft web prepare` wrote,
 * EDGEPEFT_TEST_GENERATED a JSON file of what Python gives: `{generated: [{adapter, prompt, options, tokens, text, finish}],
 * refused: [{use, says}]}`.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { InputError, openBundle } from "../../src/index.js";
import { Pieces } from "../../src/pieces.js";

const bundle = process.env.EDGEPEFT_TEST_CAUSAL ?? "";
const expected = JSON.parse(await readFile(process.env.EDGEPEFT_TEST_GENERATED ?? "", "utf8"));

describe("generation", () => {
  /** @type {import("../../src/index.js").Runtime} */
  let model;
  before(async () => {
    model = await openBundle(bundle);
  });
  after(() => model.close());

  for (const { adapter, prompt, options, tokens, text, finish } of expected.generated) {
    test(`${JSON.stringify(adapter)}: ${JSON.stringify(prompt).slice(0, 60)} ${JSON.stringify(options)}`, async () => {
      /** @type {string[]} */
      const pieces = [];
      await model.use(adapter);
      const found = await model.generate(prompt, { ...options, onText: (piece) => pieces.push(piece) });
      assert.deepEqual(found.tokens, tokens);
      assert.equal(found.text, text);
      assert.equal(found.finish, finish);
      assert.equal(pieces.join(""), text);
      assert.ok(pieces.every((piece) => piece?.isWellFormed()));
    });
  }

  for (const { use, says } of expected.refused) {
    test(`${JSON.stringify(use)} is refused as in Python`, async () => {
      await model.use(null);
      await assert.rejects(model.use(use[0], use[1]), (e) => e instanceof InputError && e.message.startsWith(says));
      assert.equal(model.active, null);
    });
  }

  test("without a seed one is drawn, with one the answer repeats", async () => {
    await model.use(model.adapters[0] ?? null);
    /** @param {number} [seed] */
    const tokens = async (seed) =>
      (await model.generate("good", { chat: false, maxNewTokens: 16, temperature: 4, ...(seed === undefined ? {} : { seed }) })).tokens.join();
    assert.equal(await tokens(7), await tokens(7));
    assert.ok(new Set([await tokens(), await tokens(), await tokens()]).size > 1);
  });

  test("a swap during a generation waits for the next one", async () => {
    const [a = "", b = ""] = model.adapters;
    await model.use(a);
    const alone = await model.generate("good", { maxNewTokens: 6, chat: false, temperature: 0 });
    const running = model.generate("good", { maxNewTokens: 6, chat: false, temperature: 0 });
    await model.use(b);
    assert.deepEqual((await running).tokens, alone.tokens);
    assert.equal(model.active, b);
  });

  test("an aborted generation ends and keeps what it had", async () => {
    const stop = new AbortController();
    await model.use(null);
    const found = await model.generate("good", { maxNewTokens: 50, chat: false, signal: stop.signal, onText: () => stop.abort() });
    assert.equal(found.finish, "cancelled");
    assert.ok(found.tokens.length < 50);
    stop.abort();
    assert.deepEqual((await model.generate("good", { signal: stop.signal })).tokens, []);
  });

  for (const [what, prompt, options, words] of /** @type {[string, any, any, RegExp][]} */ ([
    ["an empty prompt", "", {}, /the prompt is empty/],
    ["no messages", [], {}, /a list of messages with a role/],
    ["a message without content", [{ role: "user" }], {}, /role .* and content/],
    ["a lone surrogate", "\ud800", { chat: false }, /valid Unicode/],
    ["no new tokens", "good", { maxNewTokens: 0 }, /maxNewTokens must be a whole number/],
    ["a temperature below zero", "good", { temperature: -1 }, /temperature must be a finite number/],
    ["a temperature that is no number", "good", { temperature: NaN }, /temperature must be a finite number/],
    ["a top-k that is no count", "good", { topK: 1.5 }, /topK must be a whole number/],
    ["a top-p beyond one", "good", { topP: 1.1 }, /topP must be above 0/],
    ["no penalty", "good", { repetitionPenalty: 0 }, /repetitionPenalty must be/],
    ["a seed below zero", "good", { seed: -1 }, /seed must be a whole number/],
    ["an empty stop text", "good", { stop: [""] }, /a stop string must be a text/],
    ["a system message without the template", "good", { chat: false, system: "x" }, /needs the chat template/],
    ["a prompt beyond the context", "good ".repeat(2000), { chat: false }, /the prompt has \d+ tokens; .* takes at most \d+/],
  ])) {
    test(`${what} is refused`, async () => {
      await assert.rejects(model.generate(prompt, options), (e) => e instanceof InputError && words.test(e.message));
    });
  }

  test("classifying with it is refused", async () => {
    await assert.rejects(model.predict(["good"]), (e) => e instanceof InputError && /this bundle's task is text-generation/.test(e.message));
  });
});

describe("pieces of text", () => {
  /** Each token is one byte. @param {number[]} tokens */
  const decode = (tokens) => new TextDecoder().decode(Uint8Array.from(tokens));
  /** @param {string} text @param {string[]} stop */
  const run = (text, stop) => {
    const pieces = new Pieces(decode, [], stop);
    const out = [];
    for (const byte of new TextEncoder().encode(text)) {
      out.push(pieces.push(byte));
      if (pieces.stopped) break;
    }
    out.push(pieces.flush());
    return { out: out.filter(Boolean), text: pieces.text };
  };

  test("never split a character", () => {
    assert.deepEqual(run("aé日👍", []), { out: ["a", "é", "日", "👍"], text: "aé日👍" });
  });
  test("never show a stop text, nor half of one", () => {
    assert.deepEqual(run("one\nENDtwo", ["END"]), { out: ["o", "n", "e", "\n"], text: "one\n" });
    assert.equal(run("an ENvelope", ["END"]).text, "an ENvelope");
    assert.deepEqual(run("abEN", ["END"]), { out: ["a", "b", "EN"], text: "abEN" });
  });
});
