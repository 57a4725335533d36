/**
 * A real bundle: EDGEPEFT_TEST_BUNDLE is a folder that `edgepeft web prepare` wrote, EDGEPEFT_TEST_EXPECTED a JSON file
 * with what Python gives for it: `{texts, ids, encoded, adapters: {name: {labels, logits}}, base, scaled, blends, mixed, refused}`.
 */

import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { readAdapter } from "../../src/adapter.js";
import {
  AdapterError,
  AdapterMismatchError,
  BundleError,
  CorruptBundleError,
  InputError,
  ManifestError,
  openBundle,
  UnknownAdapterError,
} from "../../src/index.js";
import { longestFirst } from "../../src/tokenizer.js";

const bundle = process.env.EDGEPEFT_TEST_BUNDLE ?? "";
const expected = JSON.parse(await readFile(process.env.EDGEPEFT_TEST_EXPECTED ?? "", "utf8"));
const { texts } = expected;

/** @param {number[][]} a @param {number[][]} b */
const difference = (a, b) => Math.max(...a.flatMap((row, i) => row.map((x, j) => Math.abs(x - (b[i]?.[j] ?? NaN)))));

describe("a bundle", () => {
  /** @type {import("../../src/index.js").Runtime} */
  let model;
  before(async () => {
    model = await openBundle(bundle);
  });
  after(() => model.close());

  test("ids are Python's, cut and paired alike", () => {
    for (const [text, ids] of expected.ids) assert.deepEqual(model.encoder?.encode(text).ids, ids, JSON.stringify(text).slice(0, 80));
  });

  test("padding and type ids are Python's", () => {
    assert.deepEqual(model.encode(texts), expected.encoded);
  });

  test("every adapter gives Python's logits and labels; the base comes back bit for bit", async () => {
    const first = await model.logits(texts);
    assert.ok(difference(first, expected.base) < 1e-5);
    for (const [name, { labels, logits }] of Object.entries(expected.adapters)) {
      await model.use(name);
      assert.equal(model.active, name);
      // Two builds of ONNX Runtime sum in different orders: 1e-5 on logits around 1.
      assert.ok(difference(await model.logits(texts), logits) < 1e-5, name);
      const found = await model.predict(texts);
      assert.deepEqual(
        found.map((p) => p.label),
        logits.map((/** @type {number[]} */ row) => labels[row.indexOf(Math.max(...row))]),
      );
      assert.ok(Math.abs(Object.values(found[0]?.probabilities ?? {}).reduce((a, b) => a + b) - 1) < 1e-12);
    }
    await model.use(null);
    assert.deepEqual(await model.logits(texts), first);
  });

  test("a scale multiplies the low-rank part", async () => {
    await model.use(expected.scaled.name, { scale: 0.5 });
    assert.ok(difference(await model.logits(texts), expected.scaled.logits) < 1e-5);
    await model.use(expected.scaled.name);
    assert.ok(difference(await model.logits(texts), expected.scaled.logits) > 1e-4);
  });

  for (const { weights, options, labels, logits } of expected.blends) {
    test(`the blend ${JSON.stringify(weights)} ${JSON.stringify(options)} is Python's`, async () => {
      await model.use(weights, options);
      assert.ok(difference(await model.logits(texts), logits) < 1e-5);
      assert.deepEqual(model.labels, labels);
      assert.equal(
        model.active,
        Object.entries(weights)
          .map(([name, weight]) => `${name}=${weight}`)
          .join(", "),
      );
      await model.use(null);
      assert.ok(difference(await model.logits(texts), expected.base) < 1e-5);
    });
  }

  for (const { adapters, logits } of expected.mixed) {
    test(`each row of a batch has its own adapter: ${adapters}`, async () => {
      await model.use("register");
      const found = await model.forwardMixed(expected.encoded, adapters);
      const width = logits[0].length;
      assert.deepEqual(found.logits?.dims, [logits.length, width]);
      const all = Array.from(found.logits?.data ?? []);
      // Behind the labels of a narrower head stands minus infinity, which JSON holds as null.
      const expectedNumbers = logits.flat();
      assert.deepEqual(
        all.map((x) => x === Number.NEGATIVE_INFINITY),
        expectedNumbers.map((/** @type {number | null} */ x) => x === null),
      );
      assert.ok(all.every((x, i) => expectedNumbers[i] === null || Math.abs(x - expectedNumbers[i]) < 1e-5));
      assert.equal(model.active, "register");
    });
  }

  for (const { call, says } of expected.refused) {
    test(`${JSON.stringify(call)} is refused as in Python`, async () => {
      const [method, ...given] = call;
      await model.use(null);
      const made = method === "use" ? model.use(given[0], given[1]) : model.forwardMixed(expected.encoded, given[0]);
      await assert.rejects(made, (e) => e instanceof InputError && e.message.startsWith(says));
      assert.equal(model.active, null);
    });
  }

  test("an unknown adapter lists those there are, and the one in use stays", async () => {
    const [name] = model.adapters;
    await model.use(name ?? "");
    await assert.rejects(
      model.use("nope"),
      (e) => e instanceof UnknownAdapterError && e.message.includes(`has no adapter 'nope'; it has: ${model.adapters.join(", ")}`),
    );
    assert.equal(model.active, name);
  });

  test("of two calls that overlap the later one wins, a failing one counts for nothing", async () => {
    const [a = "", b = ""] = model.adapters;
    await Promise.all([model.load(a), model.use(b), model.use(a), model.use("nope").catch(() => {})]);
    assert.equal(model.active, a);
  });

  test("runs that overlap keep the adapter they began with", async () => {
    const [a = "", b = ""] = model.adapters;
    await model.use(a);
    const alone = await model.logits(texts);
    const running = model.logits(texts);
    await model.use(b);
    assert.deepEqual(await running, alone);
  });

  for (const [what, call, words] of /** @type {[string, (m: any) => Promise<unknown>, RegExp][]} */ ([
    ["no texts", (m) => m.predict([]), /no texts were given/],
    ["a text instead of a list", (m) => m.predict("good"), /no texts were given: pass a list/],
    ["a number", (m) => m.predict([3]), /3 is not a text/],
    ["null", (m) => m.predict([null]), /null is not a text/],
    ["a lone surrogate", (m) => m.predict(["\ud800"]), /is not a text \(valid Unicode\)/],
    ["three texts in a pair", (m) => m.predict([["a", "b", "c"]]), /nor a pair of two texts/],
    ["a batch of none", (m) => m.predict(["a"], { batchSize: 0 }), /batchSize/],
    ["a scale that is no number", (m) => m.use(m.adapters[0], { scale: NaN }), /scale must be a finite number/],
    ["a blend of nothing", (m) => m.use({}), /a blend needs at least one adapter/],
    ["a weight that is no number", (m) => m.use({ [m.adapters[0]]: NaN }), /the weight of adapter '.*' must be a finite number/],
    ["a head beside the blend", (m) => m.use({ reviews: 1 }, { head: "movies" }), /head 'movies' is not among the adapters/],
    ["a head without a blend", (m) => m.use("reviews", { head: "movies" }), /head 'movies' is for blends; 'reviews' has its own/],
    ["fewer adapters than rows", (m) => m.forwardMixed(m.encode(["a", "b"]), ["reviews"]), /1 adapters for inputs with 2 rows/],
    ["a missing input", (m) => m.forward({ input_ids: [[1]] }), /the base takes exactly/],
    ["ragged rows", (m) => m.forward(Object.fromEntries(m.manifest.inputs.map((/** @type {any} */ i) => [i.name, [[1, 2], [1]]]))), /rows of equal length/],
    ["an id beyond the vocabulary", (m) => m.forward({ ...m.encode(["a"]), input_ids: [[2 ** 40, 1, 1]] }), /cannot run inputs of shape|differ in shape/],
  ])) {
    test(`${what} is refused`, async () => {
      await assert.rejects(call(model), (e) => e instanceof InputError && words.test(e.message));
      assert.equal((await model.predict(["good"])).length, 1, "and the next call works");
    });
  }
});

describe("opening", () => {
  test("an unknown variant lists those there are", async () => {
    await assert.rejects(openBundle(bundle, { variant: "q4" }), (e) => e instanceof BundleError && /has no variant 'q4'; it has: fp32/.test(e.message));
  });

  test("a folder without a manifest, and none at all", async () => {
    for (const path of [tmpdir(), "/no/such/folder"]) {
      await assert.rejects(openBundle(path), (e) => e instanceof BundleError && /is not a bundle: it holds no edgepeft\.json/.test(e.message));
    }
  });

  test("gains are neither scaled nor blended", async () => {
    const folder = await damaged((path) => edit(path, (m) => (m.adapters.reviews.scalable = false)));
    const model = await openBundle(folder);
    try {
      for (const call of [() => model.use("reviews", { scale: 0.5 }), () => model.use({ reviews: 0.5, movies: 0.5 }, { head: "movies" })]) {
        await assert.rejects(call, (e) => e instanceof InputError && /adapter 'reviews' \(LoRA\) cannot be (scaled|blended): it multiplies/.test(e.message));
      }
      await model.use("reviews");
    } finally {
      await model.close();
      await rm(folder, { recursive: true });
    }
  });

  test("a device that is not there", async () => {
    await assert.rejects(openBundle(bundle, { device: "webgpu" }), (e) => e instanceof BundleError && /no WebGPU here/.test(e.message));
    await assert.rejects(openBundle(bundle, /** @type {any} */ ({ device: "tpu" })), (e) => e instanceof InputError && /found "tpu"/.test(e.message));
  });

  test("threads that are no count", async () => {
    await assert.rejects(openBundle(bundle, { threads: 0 }), InputError);
  });

  /** @param {(folder: string) => Promise<void>} damage */
  const damaged = async (damage) => {
    const folder = await mkdtemp(join(tmpdir(), "edgepeft-"));
    await cp(bundle, folder, { recursive: true });
    await damage(folder);
    return folder;
  };
  /** @param {string} folder @param {(manifest: any) => void} change */
  const edit = async (folder, change) => {
    const path = join(folder, "edgepeft.json");
    const manifest = JSON.parse(await readFile(path, "utf8"));
    change(manifest);
    await writeFile(path, JSON.stringify(manifest));
  };
  /** @param {string} file @param {(bytes: Buffer) => Buffer} change */
  const rewrite = (file, change) => async (/** @type {string} */ folder) => {
    const path = join(folder, file);
    await writeFile(path, change(await readFile(path)));
  };

  for (const [what, damage, kind, words] of /** @type {[string, (folder: string) => Promise<void>, any, RegExp][]} */ ([
    [
      "edited weights",
      rewrite("onnx/model.onnx_data", (b) => Buffer.from(b.map((byte, i) => (i === 40 ? byte ^ 1 : byte)))),
      CorruptBundleError,
      /model\.onnx_data was changed after the bundle was written/,
    ],
    ["a cut graph", rewrite("onnx/model_web.onnx", (b) => b.subarray(0, 100)), CorruptBundleError, /model_web\.onnx has 100 bytes, the manifest says/],
    ["a grown tokenizer", rewrite("tokenizer.json", (b) => Buffer.concat([b, b])), CorruptBundleError, /tokenizer\.json has more bytes/],
    ["missing weights", (folder) => rm(join(folder, "onnx/model.onnx_data")), CorruptBundleError, /model\.onnx_data is missing/],
    ["a manifest that is cut", rewrite("edgepeft.json", (b) => b.subarray(0, 50)), ManifestError, /is not JSON/],
    [
      "no graph for the web",
      (folder) => edit(folder, (m) => (m.variants.fp32.input_file = null)),
      BundleError,
      /has no graph whose slots are plain inputs.*edgepeft web prepare/,
    ],
    [
      "an adapter of another base",
      (folder) => edit(folder, (m) => (Object.values(m.adapters)[0].base_identity = "00".repeat(32))),
      AdapterMismatchError,
      /was made for base identity 0000/,
    ],
    [
      "states with a layer missing",
      (folder) =>
        edit(folder, (m) => {
          m.adapters.reviews.prefix_length = 3;
          m.inputs.push({ name: "past_key_values.0.key", dtype: "float", shape: ["batch", 2, "past", 4] });
        }),
      AdapterMismatchError,
      /puts 3 states before the sequence, at prefix\.0\.key it has none/,
    ],
    [
      "slots that the adapters were not made for",
      (folder) => edit(folder, (m) => (m.slots.linear[0].rank = "other")),
      AdapterMismatchError,
      /was made for slot schema/,
    ],
    [
      "variants beyond the heap",
      (folder) => edit(folder, (m) => (m.files["onnx/model.onnx_data"].bytes = 2 ** 33)),
      BundleError,
      /takes \d+ bytes of memory; ONNX Runtime Web can address 4294967296/,
    ],
  ])) {
    test(`${what} are refused`, async () => {
      const folder = await damaged(damage);
      try {
        await assert.rejects(openBundle(folder), (e) => e instanceof kind && words.test(/** @type {Error} */ (e).message));
      } finally {
        await rm(folder, { recursive: true });
      }
    });
  }

  test("adapters come and go while it is open, a bounded number in memory", async () => {
    const folder = await damaged(async () => {});
    try {
      const place = join(folder, "edgepeft.json");
      const whole = await readFile(place, "utf8");
      const names = Object.keys(expected.adapters);
      const [first = "", second = ""] = names;
      await edit(folder, (m) => delete m.adapters[second]);
      const model = await openBundle(folder, { resident: 1 });
      await assert.rejects(model.use(second), UnknownAdapterError);
      await model.use(first);
      assert.deepEqual(await model.refresh(), { added: [], removed: [], replaced: [] });
      await writeFile(place, whole);
      assert.deepEqual(await model.refresh(), { added: [second], removed: [], replaced: [] });
      assert.deepEqual(model.resident, [first]);
      for (const name of [second, first, second]) {
        await model.use(name);
        assert.deepEqual(model.resident, [name]);
        assert.ok(difference(await model.logits(texts), expected.adapters[name].logits) < 1e-5, name);
      }
      model.unload(second);
      assert.deepEqual(model.resident, []);
      assert.ok(difference(await model.logits(texts), expected.adapters[second].logits) < 1e-5, "the one in use goes on");
      assert.throws(() => model.unload("nope"), UnknownAdapterError);
      await edit(folder, (m) => delete m.adapters[second]);
      assert.deepEqual((await model.refresh()).removed, [second]);
      await assert.rejects(model.use(second), UnknownAdapterError);
      await edit(folder, (m) => (m.max_length = 7));
      await assert.rejects(model.refresh(), (e) => e instanceof BundleError && /holds another base.*max_length differs/.test(e.message));
      await model.close();
      await assert.rejects(openBundle(folder, { resident: 0 }), (e) => e instanceof InputError && /resident must be/.test(e.message));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("an adapter file that was put in another's place is refused when it is used", async () => {
    const folder = await damaged(async (path) => {
      const manifest = JSON.parse(await readFile(join(path, "edgepeft.json"), "utf8"));
      const all = /** @type {any[]} */ (Object.values(manifest.adapters));
      // Of another label count: one of the same shapes, listed with its own hash, is that adapter by another name.
      const [a, b] = [all[0], all.find((entry) => entry.labels.length !== all[0].labels.length)];
      await edit(path, (m) => {
        m.files[a.onnx_adapter] = m.files[b.onnx_adapter];
      });
      await cp(join(path, b.onnx_adapter), join(path, a.onnx_adapter));
    });
    const model = await openBundle(folder);
    try {
      await assert.rejects(model.use(model.adapters[0] ?? ""), (e) => e instanceof AdapterMismatchError && /should hold/.test(e.message));
      assert.equal(model.active, null);
    } finally {
      await model.close();
      await rm(folder, { recursive: true });
    }
  });

  test("a server that answers nonsense", async () => {
    const server = createServer((_, response) => response.writeHead(500).end()).listen(0, "127.0.0.1");
    await new Promise((done) => server.once("listening", done));
    const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
    try {
      await assert.rejects(openBundle(`http://127.0.0.1:${port}/b`), (e) => e instanceof BundleError && /the server answers 500/.test(e.message));
    } finally {
      server.close();
    }
    await assert.rejects(openBundle(`http://127.0.0.1:${port}/b`), (e) => e instanceof BundleError && /cannot be fetched/.test(e.message));
  });
});

describe("adapter files", async () => {
  const manifest = JSON.parse(await readFile(join(bundle, "edgepeft.json"), "utf8"));
  const entry = /** @type {any} */ (Object.values(manifest.adapters)[0]);
  const bytes = new Uint8Array(await readFile(join(bundle, entry.onnx_adapter)));

  test("tensors and shapes are the manifest's", () => {
    const { tensors } = readAdapter(bytes, "x");
    assert.deepEqual(Object.fromEntries([...tensors].map(([name, { dims }]) => [name, dims]).sort()), Object.fromEntries(Object.entries(entry.tensors).sort()));
  });

  test("cut anywhere, it is refused and never read beyond its end", () => {
    for (let length = 0; length < bytes.length; length += Math.ceil(bytes.length / 200)) {
      assert.throws(() => readAdapter(bytes.slice(0, length), "x"), AdapterError, `${length} bytes`);
    }
  });

  test("with any byte of its first kilobyte changed, it reads as something or is refused, and nothing else", () => {
    for (let at = 0; at < Math.min(1024, bytes.length); at++) {
      for (const value of [0, 0x7f, 0xff]) {
        const edited = bytes.slice();
        edited[at] = value;
        try {
          readAdapter(edited, "x");
        } catch (error) {
          assert.ok(error instanceof AdapterError, `byte ${at} = ${value}: ${error}`);
        }
      }
    }
  });
});

test("pairs are cut as Hugging Face's tokenizers cut them", () => {
  assert.deepEqual(longestFirst(3, 4, 10), [3, 4]);
  assert.deepEqual(longestFirst(3, 20, 10), [3, 7]);
  assert.deepEqual(longestFirst(20, 3, 10), [7, 3]);
  assert.deepEqual(longestFirst(20, 30, 9), [4, 5]);
  assert.deepEqual(longestFirst(30, 20, 9), [5, 4]);
});
