/** The demo page: type a text, switch adapters, see outputs and milliseconds. */

import { openBundle } from "/web/src/index.js";

const TEXTS = [
  "The battery died after two days and the seller never answered.",
  "A moving, beautifully acted film that stays with you.",
  "omg sooo happy with my new phone :)",
];
const PROMPTS = ["What is the capital of France?", "My laptop does not start. What should I do?", "Tell me about a walk in the country."];
const NEW_TOKENS = 48;

/** @param {string} id */
const at = (id) => /** @type {any} */ (document.getElementById(id));
/** @param {string} tag @param {object} [properties] @param {(Node | string)[]} children */
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const milliseconds = (/** @type {number} */ ms) => `${ms < 0.1 ? "<0.1" : ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
const megabytes = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** @type {import("../src/index.js").Runtime | null} */
let model = null;
let chosen = /** @type {string | null} */ (null);
let turn = 0;
let speaking = /** @type {AbortController | null} */ (null);
const speaks = () => model?.manifest.task === "text-generation";

/** @param {unknown} error */
function show(error) {
  const failure = /** @type {Error | null} */ (error);
  at("error").hidden = failure === null;
  at("error").textContent = failure === null ? "" : `${failure.name}: ${failure.message}`;
}

/** @param {string | undefined} variant */
async function open(variant) {
  show(null);
  at("progress").hidden = false;
  const parts = new Map();
  const start = performance.now();
  const before = model;
  model = null;
  speaking?.abort();
  await before?.close();
  const opened = await openBundle("/bundle/", {
    ...(variant === undefined ? {} : { variant }),
    threads: globalThis.crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1,
    onProgress: (file, bytes, total) => {
      parts.set(file, [bytes, total]);
      const [done, whole] = [...parts.values()].reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
      at("progress").value = done / whole;
      at("about").textContent = `Fetching the base: ${megabytes(done)} of ${megabytes(whole)}`;
    },
  });
  const took = performance.now() - start;
  at("progress").hidden = true;
  model = opened;
  describe(opened, took);
  examples(speaks() ? PROMPTS : TEXTS);
  at("generate").hidden = !speaks();
  at("all").parentElement.hidden = speaks();
  await choose(chosen !== null && opened.adapters.includes(chosen) ? chosen : (opened.adapters[0] ?? null));
}

/** @param {import("../src/index.js").Runtime} opened @param {number} took */
function describe(opened, took) {
  const { manifest } = opened;
  const files = Object.values(manifest.variants[opened.variant]?.data ?? []).map((file) => manifest.files[file]?.bytes ?? 0);
  const base = megabytes(files.reduce((a, b) => a + b, 0));
  at("about").textContent = `${opened.adapters.length} adapters over one ${base} base (${opened.variant}), opened and checked in ${milliseconds(took)}. Everything runs on this machine.`;
  at("facts").textContent = `base ${manifest.base.source.split("/").at(-1)}, identity ${manifest.base.identity.slice(0, 16)}…, ${manifest.task}, ONNX Runtime Web on WebAssembly`;
  const variants = Object.entries(manifest.variants).filter(([, v]) => v.input_file !== null || v.slots !== "overridable");
  at("variant").replaceChildren(...variants.map(([name]) => make("option", { value: name, textContent: name, selected: name === opened.variant })));
  const names = [...opened.adapters, null];
  at("adapters").replaceChildren(
    ...names.map((name) => {
      const button = make("button", { type: "button", textContent: name ?? "base", onclick: () => choose(name).catch(show) });
      button.setAttribute("role", "radio");
      button.dataset.name = name ?? "";
      return button;
    }),
  );
}

/** @param {string | null} name */
async function choose(name) {
  chosen = name;
  for (const button of at("adapters").children) button.setAttribute("aria-checked", String(button.dataset.name === (name ?? "")));
  const scalable = name !== null && Boolean(model?.manifest.adapters[name]?.scalable);
  at("scale").disabled = !scalable;
  // A language model answers when it is asked to: it takes seconds.
  if (!speaks()) await run();
}

/** Swap and answer, token by token; a second call ends the first. */
async function generate() {
  const opened = model;
  const text = at("text").value;
  if (speaking !== null) return speaking.abort();
  if (opened === null || !text.trim()) return;
  const mine = (speaking = new AbortController());
  const answer = make("p", { className: "answer" });
  at("result").replaceChildren(answer);
  at("times").replaceChildren();
  at("generate").textContent = "Stop";
  show(null);
  try {
    const scale = at("scale").disabled ? 1 : Number(at("scale").value);
    at("scale-value").textContent = scale.toFixed(2);
    const start = performance.now();
    await opened.use(chosen, { scale });
    const swapped = performance.now();
    const found = await opened.generate(text, { maxNewTokens: NEW_TOKENS, signal: mine.signal, onText: (piece) => answer.append(piece) });
    times({
      swap: milliseconds(swapped - start),
      "first token": milliseconds(found.prefillMs),
      "tokens/s": found.tokensPerSecond?.toFixed(1) ?? "–",
      tokens: `${found.promptTokens} + ${found.tokens.length} (${found.finish})`,
    });
  } finally {
    speaking = null;
    at("generate").textContent = "Generate";
  }
}

/** Swap and classify; the last call wins. */
async function run() {
  const mine = ++turn;
  const opened = model;
  const text = at("text").value;
  if (opened === null || !text.trim()) return;
  const scale = at("scale").disabled ? 1 : Number(at("scale").value);
  at("scale-value").textContent = scale.toFixed(2);
  const start = performance.now();
  await opened.use(chosen, { scale });
  const swapped = performance.now();
  const [found] = await opened.predict([text]);
  const done = performance.now();
  if (mine !== turn || !found) return;
  show(null);
  const ranked = Object.entries(found.probabilities).sort(([, a], [, b]) => b - a);
  at("result").replaceChildren(
    ...(opened.labelsAreUntrained ? [make("p", { textContent: "The base has no trained head: choose an adapter, which brings its own." })] : ranked.map(bar)),
  );
  times({ swap: milliseconds(swapped - start), "text to label": milliseconds(done - swapped), tokens: opened.encoder?.encode(text).ids.length ?? 0 });
  await compare(opened, text, mine);
  if (mine === turn) await opened.use(chosen, { scale });
}

/** @param {[string, number]} entry @param {number} position */
function bar([label, probability], position) {
  const value = make("div", { className: "value" });
  value.style.width = `${probability * 100}%`;
  return make(
    "div",
    { className: position === 0 ? "row best" : "row" },
    make("span", { textContent: label }),
    make("div", { className: "track" }, value),
    make("span", { className: "number", textContent: `${(probability * 100).toFixed(1)} %` }),
  );
}

/** @param {Record<string, string | number>} values */
function times(values) {
  at("times").replaceChildren(...Object.entries(values).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: String(value) }))));
}

/** @param {import("../src/index.js").Runtime} opened @param {string} text @param {number} mine */
async function compare(opened, text, mine) {
  const rows = [];
  for (const name of opened.adapters) {
    const start = performance.now();
    await opened.use(name);
    const swapped = performance.now();
    const [found] = await opened.predict([text]);
    if (mine !== turn || !found) return;
    const cells = [name, found.label, `${(found.score * 100).toFixed(1)} %`, milliseconds(swapped - start), milliseconds(performance.now() - swapped)];
    rows.push(make("tr", {}, ...cells.map((cell) => make("td", { textContent: cell }))));
  }
  const head = make("tr", {}, ...["adapter", "label", "probability", "swap", "run"].map((cell) => make("th", { textContent: cell })));
  at("all").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

/** @param {string[]} texts */
function examples(texts) {
  // What a person typed stays; an example of the other kind does not.
  if (["", ...TEXTS, ...PROMPTS].includes(at("text").value)) at("text").value = texts[0];
  at("examples").replaceChildren(
    ...texts.map((text) =>
      make("button", {
        type: "button",
        textContent: text,
        onclick: () => {
          at("text").value = text;
          answer().catch(show);
        },
      }),
    ),
  );
}

const answer = () => (speaks() ? generate() : run());
let waiting = 0;
const soon = () => {
  clearTimeout(waiting);
  if (!speaks()) waiting = setTimeout(() => run().catch(show), 150);
  at("scale-value").textContent = Number(at("scale").value).toFixed(2);
};
at("text").oninput = soon;
at("scale").oninput = soon;
at("generate").onclick = () => generate().catch(show);
at("variant").onchange = () => open(at("variant").value).catch(show);

const parameters = new URLSearchParams(location.search);
at("text").value = parameters.get("text") ?? "";
chosen = parameters.get("adapter");
open(parameters.get("variant") ?? undefined).catch(show);
