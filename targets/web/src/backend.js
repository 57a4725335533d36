/** ONNX Runtime Web on WebAssembly or WebGPU: tensors, sessions, and which nodes of a graph run where. */

import { BundleError, InputError } from "./errors.js";
import { toHalves } from "./halves.js";

/**
 * @typedef {"wasm" | "webgpu"} Device
 * @typedef {import("onnxruntime-web/wasm").Tensor} Tensor
 * @typedef {import("onnxruntime-web/wasm").InferenceSession} InferenceSession
 * @typedef {import("onnxruntime-web/wasm").InferenceSession.SessionOptions} SessionOptions
 * @typedef {Record<string, Tensor>} Feeds
 *
 * @typedef {object} Gpu  A GPU as WebGPU describes it.
 * @property {string} vendor
 * @property {string} architecture
 * @property {boolean} software  Whether a program on the CPU stands in for one: its speed says nothing.
 * @property {boolean} halves  Whether it computes in float16 (the feature `shader-f16`), as variants in half precision need.
 *
 * @typedef {object} Placement  Where ONNX Runtime put the nodes of a graph.
 * @property {Record<string, number>} nodes  How many, by execution provider.
 * @property {Record<string, number>} cpu  Those on the CPU, by operator.
 */

/** One build of ONNX Runtime Web. A page may hold both; tensors of one are not those of the other. */
export class Backend {
  #ort;
  /** The inputs that a session takes in float16. @type {WeakMap<InferenceSession, Set<string>>} */ #halves = new WeakMap();
  /** Tensors in float16, by those in float32 that they were made of. @type {WeakMap<Tensor, Tensor>} */ #converted = new WeakMap();

  /** @param {typeof import("onnxruntime-web/wasm")} ort @param {Device} device @param {Gpu | null} gpu */
  constructor(ort, device, gpu) {
    this.#ort = ort;
    this.device = device;
    this.gpu = gpu;
  }

  /**
   * WebGPU's MatMul never returns for matrices of no columns: there a slot that nothing fills gets zeros of rank 1 instead,
   * which add nothing.
   */
  get emptyRank() {
    return this.device === "webgpu" ? 1 : 0;
  }

  /** @param {"float32" | "int64" | "float16"} type @param {Float32Array | BigInt64Array | import("./halves.js").Halves} data @param {readonly number[]} dims @returns {Tensor} */
  tensor(type, data, dims) {
    return new this.#ort.Tensor(type, /** @type {any} */ (data), dims);
  }

  /**
   * What a session is fed, with float32 tensors in float16 where it takes that; each is converted once.
   *
   * @param {InferenceSession} session @param {Feeds} feeds @returns {Feeds}
   */
  typed(session, feeds) {
    const halves = this.#inputsInHalves(session);
    if (!halves.size) return feeds;
    return Object.fromEntries(
      Object.entries(feeds).map(([name, tensor]) => [name, halves.has(name) && tensor.type === "float32" ? this.#halved(tensor) : tensor]),
    );
  }

  /** @param {InferenceSession} session @returns {Set<string>} */
  #inputsInHalves(session) {
    let names = this.#halves.get(session);
    if (names === undefined) {
      names = new Set(session.inputMetadata.filter((input) => input.isTensor && input.type === "float16").map(({ name }) => name));
      this.#halves.set(session, names);
    }
    return names;
  }

  /** @param {Tensor} tensor @returns {Tensor} */
  #halved(tensor) {
    let half = this.#converted.get(tensor);
    if (half === undefined) {
      half = this.tensor("float16", toHalves(/** @type {Float32Array} */ (tensor.data)), tensor.dims);
      this.#converted.set(tensor, half);
    }
    return half;
  }

  /**
   * @param {Uint8Array} model
   * @param {SessionOptions} options
   * @param {number} threads
   * @param {string} where  For messages.
   * @returns {Promise<InferenceSession>}
   */
  async session(model, options, threads, where) {
    this.#ort.env.wasm.numThreads = threads;
    try {
      return await this.#ort.InferenceSession.create(model, { executionProviders: [this.device], ...options });
    } catch (error) {
      throw new BundleError(`ONNX Runtime Web cannot open ${where}: ${/** @type {Error} */ (error).message}`, { cause: error });
    }
  }

  /**
   * Where ONNX Runtime puts the nodes of a graph. It says so in its log only: a session of its own is opened for that, since
   * one that logs this much does so in every run.
   *
   * @param {Uint8Array} model @param {SessionOptions} options @param {number} threads @param {string} where
   * @returns {Promise<Placement>}
   */
  async placement(model, options, threads, where) {
    const { lines, result } = await overheard(() => this.session(model, { ...options, logSeverityLevel: 0, logVerbosityLevel: 0 }, threads, where));
    await result.release();
    return parsePlacement(lines);
  }
}

/**
 * The build for a device, loaded when it is first asked for.
 *
 * @param {Device} device
 * @returns {Promise<Backend>}
 * @throws {BundleError} Where this browser has no WebGPU.
 */
export async function openBackend(device) {
  if (device === "wasm") return new Backend(await import("onnxruntime-web/wasm"), device, null);
  if (device !== "webgpu") throw new InputError(`device must be "wasm" or "webgpu", found ${JSON.stringify(device)}`);
  const gpu = await findGpu();
  if (gpu === null) throw new BundleError('no WebGPU here: navigator.gpu gives no adapter. Open the bundle with { device: "wasm" }.');
  return new Backend(await import("onnxruntime-web/webgpu"), device, gpu);
}

/** The GPU that WebGPU offers, if any. @returns {Promise<Gpu | null>} */
export async function findGpu() {
  const found = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter();
  if (!found) return null;
  const { vendor = "", architecture = "", isFallbackAdapter = false } = found.info ?? {};
  const halves = found.features?.has("shader-f16") ?? false;
  return { vendor, architecture, software: isFallbackAdapter || architecture === "swiftshader", halves };
}

/** The placement of two graphs. @param {Placement | null} one @param {Placement} other @returns {Placement} */
export function joined(one, other) {
  /** @param {Record<string, number>} a @param {Record<string, number>} b */
  const sum = (a, b) => Object.fromEntries([...Object.keys(a), ...Object.keys(b)].map((name) => [name, (a[name] ?? 0) + (b[name] ?? 0)]));
  return one === null ? other : { nodes: sum(one.nodes, other.nodes), cpu: sum(one.cpu, other.cpu) };
}

const METHODS = /** @type {const} */ (["debug", "error", "info", "log", "warn"]);

/**
 * What ONNX Runtime writes to the console while `work` is done; what others write goes on to it.
 *
 * @template T @param {() => Promise<T>} work
 * @returns {Promise<{ lines: string[], result: T }>}
 */
async function overheard(work) {
  /** @type {string[]} */
  const lines = [];
  const before = METHODS.map((method) => /** @type {const} */ ([method, console[method]]));
  for (const [method, write] of before) {
    console[method] = (/** @type {unknown[]} */ ...values) => {
      if (typeof values[0] === "string" && values[0].includes("onnxruntime:")) lines.push(values[0]);
      else write.apply(console, values);
    };
  }
  try {
    return { lines, result: await work() };
  } finally {
    for (const [method, write] of before) console[method] = write;
  }
}

const PLACED = /VerifyEachNodeIsAssignedToAnEp\]\s+(?:All nodes|Node\(s\)) placed on \[(\w+?)(?:ExecutionProvider)?\]\. Number of nodes: (\d+)/;
const NODE = /VerifyEachNodeIsAssignedToAnEp\]\s+(\S+) \(/;

/** @param {string[]} lines @returns {Placement} */
export function parsePlacement(lines) {
  /** @type {Placement} */
  const placement = { nodes: {}, cpu: {} };
  let provider = "";
  for (const line of lines) {
    const placed = PLACED.exec(line);
    if (placed) {
      provider = placed[1] ?? "";
      placement.nodes[provider] = Number(placed[2]);
      continue;
    }
    const operator = NODE.exec(line)?.[1];
    if (operator !== undefined && provider === "CPU") placement.cpu[operator] = (placement.cpu[operator] ?? 0) + 1;
  }
  return placement;
}
