/** Files of a folder that came from elsewhere, in Node: nothing outside it, nothing that blocks or does not end. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { CorruptBundleError } from "../src/errors.js";
import { openSource, readChecked } from "../src/source.js";

describe("a folder", () => {
  const content = Buffer.from("weights");
  const entry = { sha256: createHash("sha256").update(content).digest("hex"), bytes: content.length };
  /** @type {string} */
  let root;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), "edgepeft-source-"));
    await mkdir(join(root, "bundle", "onnx"), { recursive: true });
    await writeFile(join(root, "bundle", "onnx", "data"), content);
    await writeFile(join(root, "outside"), content);
    await symlink("../outside", join(root, "bundle", "link"));
    await symlink("..", join(root, "bundle", "up"));
    execFileSync("mkfifo", [join(root, "bundle", "pipe")]);
  });
  after(() => rm(root, { recursive: true }));
  const read = (/** @type {string} */ path) => readChecked(openSource(join(root, "bundle")), path, entry);

  test("a file", async () => {
    assert.deepEqual(Buffer.from(await read("onnx/data")), content);
  });

  for (const path of ["link", "up/outside", "pipe", "onnx"]) {
    test(`${path} is refused at once`, { timeout: 5000 }, async () => {
      await assert.rejects(read(path), (e) => e instanceof CorruptBundleError && /copy the bundle again without links/.test(e.message));
    });
  }

  test("what is missing", async () => {
    await assert.rejects(read("onnx/none"), (e) => e instanceof CorruptBundleError && /is missing/.test(e.message));
  });
});
