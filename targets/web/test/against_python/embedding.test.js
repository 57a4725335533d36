/**
 * Bundles whose texts are embedded: EDGEPEFT_TEST_EXPECTED is a JSON file `{bundle, texts, cases: [{use, options, rows}], refused}` with
 * what Python gives for a bundle that `edgepeft web prepare` wrote.
 */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";

import { InputError, openBundle } from "../../src/index.js";

const { bundle, texts, cases, refused } = JSON.parse(await readFile(process.env.EDGEPEFT_TEST_EXPECTED ?? "", "utf8"));

describe("embeddings", () => {
  /** @type {import("../../src/index.js").Runtime} */
  let model;
  before(async () => {
    model = await openBundle(bundle);
  });
  after(() => model.close());

  for (const { use, head, options, rows } of cases) {
    test(`${JSON.stringify(use)} ${JSON.stringify(options)} are Python's`, async () => {
      await model.use(use, head === null ? {} : { head });
      const found = await model.embed(texts, options);
      assert.deepEqual(
        found.map((row) => row.length),
        rows.map((/** @type {number[]} */ row) => row.length),
      );
      // Two builds of ONNX Runtime sum in different orders: 1e-5 on numbers around 1.
      const worst = Math.max(...found.flatMap((row, i) => row.map((x, j) => Math.abs(x - rows[i][j]))));
      assert.ok(worst < 1e-5, `${worst}`);
    });
  }

  for (const { use, options, says } of refused) {
    test(`${JSON.stringify(options)} is refused as in Python`, async () => {
      await model.use(null);
      const made = use === null ? model.embed(texts, options) : model.use(use);
      await assert.rejects(made, (e) => e instanceof InputError && e.message.startsWith(says));
    });
  }
});
