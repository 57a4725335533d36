/** Opening a bundle: its files are fetched and checked, and a session made of a variant. */

import { readAdapter } from "./adapter.js";
import { joined, openBackend } from "./backend.js";
import { AdapterMismatchError, BundleError, InputError } from "./errors.js";
import { findVariant, MANIFEST_NAME, onVariant, parseManifest } from "./manifest.js";
import { checkResident, RESIDENT } from "./residents.js";
import { Runtime } from "./runtime.js";
import { checkAdapters, slotSignature, slotTensors } from "./slots.js";
import { openSource, readChecked, sha256 } from "./source.js";
import { Texts } from "./texts.js";

/**
 * @typedef {import("./backend.js").Backend} Backend
 * @typedef {import("./backend.js").Feeds} Feeds
 * @typedef {import("./manifest.js").FileEntry} FileEntry
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./manifest.js").Variant} Variant
 * @typedef {import("./source.js").Source} Source
 *
 * @typedef {object} OpenOptions
 * @property {string} [variant]  `fp32` by default, else the first there is; on a GPU with `shader-f16`, `q4f16` or `fp16` where the
 *   bundle has one.
 * @property {import("./backend.js").Device} [device]  `"wasm"` by default; `"webgpu"` runs on the GPU what ONNX Runtime can.
 * @property {boolean} [placement]  Whether to find out which nodes run where; with WebGPU, that opens the session twice.
 * @property {number} [threads]  Threads of the wasm backend; more than one needs a cross-origin isolated page. Default 1.
 *   ONNX Runtime Web reads it once: the first bundle opened on a page decides.
 * @property {number} [resident]  Adapters that stay in memory, 8 by default: each is fetched at its first use, and the one used
 *   longest ago is let go.
 * @property {(file: string, bytes: number, total: number) => void} [onProgress]  Told while files arrive, in bytes.
 */

/** ONNX Runtime Web's heap ends here, whatever the machine has. */
const HEAP_BYTES = 2 ** 32;
const MANIFEST_LIMIT = 64 << 20;

/**
 * Open a bundle for inference: by URL, or in Node by path.
 *
 * The manifest, the variant's files and every adapter's contract are checked first; adapters are fetched, and checked, when
 * they are first used.
 *
 * @param {string | URL} where
 * @param {OpenOptions} [options]
 * @returns {Promise<Runtime>}
 * @throws {BundleError} Where there is no bundle, its manifest is not valid, a file was changed, or the device is not there.
 * @throws {AdapterMismatchError} Where an adapter was made for another base.
 */
export async function openBundle(where, options = {}) {
  const { threads = 1, device = "wasm", onProgress = () => {}, resident = RESIDENT } = options;
  checkResident(resident);
  if (!Number.isInteger(threads) || threads < 1) throw new InputError(`threads must be a whole number from 1 on, found ${threads}`);
  if (threads > 1 && typeof process !== "undefined" && process.versions?.node) {
    throw new InputError(`ONNX Runtime Web runs with one thread in Node, found threads ${threads}; native onnxruntime runs with more`);
  }
  const source = openSource(where);
  const name = source.name.replace(/\/$/, "");
  const readManifest = () => readCheckedManifest(source, name);
  const manifest = await readManifest();
  const backend = await openBackend(device);
  const [variant, entry] = findVariant(manifest, name, options.variant, backend.gpu);
  const graph = graphFile(name, variant, entry);
  const decoderFile = entry.slots === "overridable" ? entry.decoder_input_file : entry.decoder_file;
  const graphs = [graph, ...(decoderFile === null ? [] : [decoderFile])];
  const files = [...graphs, ...entry.data];
  const size = files.reduce((sum, file) => sum + fileEntry(manifest, file).bytes, 0);
  const held = entry.input_unpacked ? size * 8 : size; // 4 bits become 32
  if (held >= HEAP_BYTES) {
    throw new BundleError(`${name}: variant ${variant} takes ${held} bytes of memory; ONNX Runtime Web can address ${HEAP_BYTES}. Use a smaller one.`);
  }
  const fetched = await Promise.all(files.map((file) => readChecked(source, file, fileEntry(manifest, file), onProgress)));
  const contents = new Map(files.map((file, i) => [file, /** @type {Uint8Array} */ (fetched[i])]));
  const texts = new Texts(source, manifest, name);
  const encoder = await texts.encoder();
  const defaults = await readDefaults(source, manifest, name, entry, backend);
  /** @type {import("./backend.js").Placement | null} */
  let placement = null;
  const sessions = [];
  for (const file of graphs) {
    const made = /** @type {const} */ ([/** @type {Uint8Array} */ (contents.get(file)), sessionOptions(entry, file, contents), threads, `${name}/${file}`]);
    if (options.placement) placement = joined(placement, await backend.placement(...made));
    sessions.push(await backend.session(...made));
  }
  const [session, decoder = null] = sessions;
  return new Runtime({
    source,
    name,
    manifest: onVariant(manifest, variant),
    variant,
    backend,
    session: /** @type {import("./backend.js").InferenceSession} */ (session),
    decoder,
    placement,
    encoder,
    texts,
    defaults,
    resident,
    readManifest: async () => onVariant(await readManifest(), variant),
  });
}

/** @param {Source} source @param {string} name @returns {Promise<Manifest>} */
async function readCheckedManifest(source, name) {
  const bytes = await source.read(MANIFEST_NAME, MANIFEST_LIMIT, () => {});
  if (bytes === null) throw new BundleError(`${name} is not a bundle: it holds no ${MANIFEST_NAME}. Make one with \`edgepeft export\`.`);
  const manifest = parseManifest(new TextDecoder().decode(bytes), `${name}/${MANIFEST_NAME}`);
  checkAdapters(manifest, name, await sha256(new globalThis.TextEncoder().encode(slotSignature(manifest))));
  return manifest;
}

/** @param {Variant} entry @param {string} graph @param {Map<string, Uint8Array>} contents @returns {import("./backend.js").SessionOptions} */
function sessionOptions(entry, graph, contents) {
  // Of two graphs each has a weights file of its own, named after it.
  const own = entry.decoder_file === null ? entry.data : entry.data.filter((file) => file === graph.replace(/(_web)?\.onnx$/, ".onnx_data"));
  return {
    // Weights that are stored in 4 bits become fp32 once, here; otherwise ONNX Runtime would unpack them in every run.
    ...(entry.input_unpacked ? { extra: { session: { disable_quant_qdq: "1" } } } : {}),
    externalData: own.map((file) => ({ path: file.split("/").at(-1) ?? file, data: /** @type {Uint8Array} */ (contents.get(file)) })),
  };
}

/** @param {string} name @param {string} variant @param {Variant} entry */
function graphFile(name, variant, entry) {
  if (entry.slots !== "overridable") return entry.file;
  if (entry.input_file !== null) return entry.input_file;
  throw new BundleError(
    `${name}: variant ${variant} has no graph whose slots are plain inputs, which ONNX Runtime Web needs. Write one with \`edgepeft web prepare BUNDLE\`.`,
  );
}

/** @param {Manifest} manifest @param {string} file */
const fileEntry = (manifest, file) => /** @type {FileEntry} */ (manifest.files[file]);

/**
 * A feed for every slot that gives the base: of no rank, or the base's own numbers where the slot has some.
 *
 * @param {Source} source @param {Manifest} manifest @param {string} name @param {Variant} entry @param {Backend} backend
 * @returns {Promise<Feeds>}
 */
async function readDefaults(source, manifest, name, entry, backend) {
  /** @type {Feeds} */
  const feeds = Object.create(null);
  if (entry.slots === "none") return feeds;
  const file = manifest.slot_defaults;
  const held = file === null ? null : readAdapter(await readChecked(source, file, fileEntry(manifest, file)), `${name}/${file}`);
  for (const [tensor, shape] of slotTensors(manifest)) {
    const found = held?.tensors.get(tensor);
    const sizes = shape.map((dim) => (typeof dim === "number" ? dim : dim === "adapter_batch" ? 1 : 0));
    if (!found && !sizes.includes(0)) {
      throw new AdapterMismatchError(`${name}: slot ${tensor} has no default of rank 0, and ${file ?? "slot_defaults"} does not hold it`);
    }
    const dims = found?.dims ?? sizes.map((size) => size || backend.emptyRank);
    feeds[tensor] = backend.tensor("float32", found?.data ?? new Float32Array(dims.reduce((product, dim) => product * dim, 1)), dims);
  }
  return feeds;
}
