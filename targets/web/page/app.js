/** The demo page: type a text, switch and blend adapters, see outputs and milliseconds. */

import { findGpu, openBundle } from "/web/src/index.js";
import { arrival, at, bars, Choice, make, megabytes, milliseconds, numbers, setState, showError, showTimes, tableOf } from "./view.js";

const TEXTS = [
  "The battery died after two days and the seller never answered.",
  "A moving, beautifully acted film that stays with you.",
  "omg sooo happy with my new phone :)",
];
const PROMPTS = ["What is the capital of France?", "My laptop does not start. What should I do?", "Tell me about a walk in the country."];
const NEW_TOKENS = 48;
/** An adapter is named by its name, the base by none. */
const BASE = "";

/** @typedef {import("../src/index.js").Runtime} Runtime */
/** @type {Runtime | null} */
let model = null;
/** What is asked for, and the last of it that worked. */
let chosen = BASE;
let worked = BASE;
let turn = 0;
let speaking = /** @type {AbortController | null} */ (null);

const chats = () => model?.manifest.task === "text-generation";
const speaks = () => chats() || model?.manifest.task === "text2text-generation";
const choice = new Choice(at("adapters"), (name) => choose(name));
const parameters = new URLSearchParams(location.search);

/** @param {string | undefined} variant @param {"wasm" | "webgpu"} device */
async function open(variant, device) {
  showError(null);
  setState("opening");
  at("progress").removeAttribute("value");
  const say = (/** @type {string} */ line) => (at("about").textContent = line);
  say("Opening the bundle…");
  turn++;
  speaking?.abort();
  const before = model;
  model = null;
  try {
    await before?.close();
    const start = performance.now();
    const opened = await openBundle("/bundle/", {
      ...(variant === undefined ? {} : { variant }),
      device,
      threads: globalThis.crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1,
      onProgress: arrival(say),
    });
    model = opened;
    describe(opened, performance.now() - start);
  } catch (error) {
    setState("failed");
    say("The bundle could not be opened.");
    showError(error, () => open(variant, device));
    return;
  }
  // So that a swap is a swap, and not a download. What fails here is told when it is chosen.
  const ahead = Promise.allSettled(model.adapters.map((name) => model?.load(name)));
  if (!speaks()) await ahead; // a language model's adapters are large, and asked for later
  setState("ready");
  await choose(model.adapters.includes(chosen) ? chosen : (model.adapters[0] ?? BASE));
}

/** @param {Runtime} opened @param {number} took */
function describe(opened, took) {
  const { manifest, adapters } = opened;
  const files = (manifest.variants[opened.variant]?.data ?? []).map((file) => manifest.files[file]?.bytes ?? 0);
  const base = megabytes(files.reduce((a, b) => a + b, 0));
  const count = adapters.length === 1 ? "1 adapter" : `${adapters.length || "No"} adapters`;
  at("about").textContent = `${count} over one ${base} base (${opened.variant}), opened and checked in ${milliseconds(took)}. Everything runs on this machine.`;
  const where =
    opened.gpu === null
      ? "WebAssembly"
      : `WebGPU (${[opened.gpu.vendor, opened.gpu.architecture].filter(Boolean).join(" ")}${opened.gpu.software ? ", software: slow" : ""})`;
  at("facts").textContent =
    `base ${manifest.base.source.split("/").at(-1)}, identity ${manifest.base.identity.slice(0, 16)}…, ${manifest.task}, ONNX Runtime Web on ${where}`;
  const variants = Object.entries(manifest.variants).filter(([, v]) => v.input_file !== null || v.slots !== "overridable");
  at("variant").replaceChildren(...variants.map(([name]) => make("option", { value: name, textContent: name, selected: name === opened.variant })));
  choice.offer([...adapters.map((name) => /** @type {[string, string]} */ ([name, name])), [BASE, manifest.merged ?? "base"]]);
  const blendable = adapters.filter((name) => linear(name));
  at("other").replaceChildren(
    make("option", { value: BASE, textContent: "none" }),
    ...blendable.map((name) => make("option", { value: name, textContent: name })),
  );
  at("blending").hidden = blendable.length < 2;
  at("scaling").hidden = !adapters.length;
  at("every").hidden = speaks() || !adapters.length;
  at("generate").hidden = !speaks();
  at("warmth").hidden = !chats();
  examples(chats() ? PROMPTS : TEXTS);
  note(
    adapters.length || manifest.merged
      ? null
      : "This bundle holds no adapters yet: the base answers. Add one with: edgepeft add BUNDLE --adapter NAME=CHECKPOINT",
  );
}

/** Whether an adapter can be scaled and blended. @param {string} name */
const linear = (name) => Boolean(model?.manifest.adapters[name]?.scalable) && !model?.manifest.adapters[name]?.prefix_length;

/** @param {string | null} text */
function note(text) {
  at("note").hidden = text === null;
  at("note").textContent = text ?? "";
}

/** @param {string} name */
async function choose(name) {
  chosen = name;
  choice.show(name);
  settings();
  // A language model answers when it is asked to: it takes seconds.
  if (speaks()) return;
  await run().catch(failed);
}

/** Controls as they fit the adapter that is chosen. */
function settings() {
  at("scale").disabled = at("other").disabled = !linear(chosen);
  if (!linear(chosen)) at("scale").value = 1;
  for (const option of at("other").options) option.disabled = option.value === chosen && chosen !== BASE;
  if (!linear(chosen) || at("other").value === chosen) at("other").value = BASE;
  at("share").hidden = at("share-value").hidden = at("other").value === BASE;
  at("scale-value").textContent = Number(at("scale").value).toFixed(2);
  at("share-value").textContent = Number(at("share").value).toFixed(2);
  at("temperature-value").textContent = Number(at("temperature").value) === 0 ? "greedy" : Number(at("temperature").value).toFixed(1);
}

/** Put what the controls say to use; milliseconds. @param {Runtime} opened */
async function swap(opened) {
  const scale = Number(at("scale").value);
  const other = at("other").value;
  const share = Number(at("share").value);
  const start = performance.now();
  if (chosen === BASE) await opened.use(null);
  else if (other === BASE) await opened.use(chosen, { scale });
  else await opened.use({ [chosen]: 1 - share, [other]: share }, { scale, ...(speaks() ? {} : { head: chosen }) });
  worked = chosen;
  return performance.now() - start;
}

/** Tell what failed and go back to the adapter that is still in use. @param {unknown} error */
function failed(error) {
  showError(error);
  chosen = worked;
  choice.show(chosen);
  settings();
}

/** Swap and answer, token by token; a second call ends the first. */
async function generate() {
  const opened = model;
  const text = at("text").value;
  if (speaking !== null) return speaking.abort();
  if (opened === null || !text.trim()) return;
  const mine = new AbortController();
  speaking = mine;
  const answer = make("p", { className: "answer" });
  at("result").replaceChildren(answer);
  at("result").setAttribute("aria-busy", "true"); // read out when it is complete
  at("times").replaceChildren();
  at("generate").textContent = "Stop";
  showError(null);
  try {
    const swapped = await swap(opened);
    answer.classList.add("coming");
    const sampling = chats() ? { temperature: Number(at("temperature").value) } : {};
    const found = await opened.generate(text, { maxNewTokens: NEW_TOKENS, ...sampling, signal: mine.signal, onText: (piece) => answer.append(piece) });
    showTimes({
      swap: milliseconds(swapped),
      "first token": milliseconds(found.prefillMs),
      "tokens/s": found.tokensPerSecond?.toFixed(1) ?? "–",
      tokens: `${found.promptTokens} + ${found.tokens.length} (${found.finish})`,
    });
  } finally {
    answer.classList.remove("coming");
    at("result").removeAttribute("aria-busy");
    speaking = null;
    at("generate").textContent = "Generate";
  }
}

/** Swap and classify; the last call wins. */
async function run() {
  const mine = ++turn;
  const opened = model;
  const text = at("text").value;
  if (opened === null) return;
  if (!text.trim()) {
    for (const id of ["result", "times", "all"]) at(id).replaceChildren();
    return;
  }
  const swapped = await swap(opened);
  const start = performance.now();
  const [found] = await opened.predict([text]);
  if (mine !== turn || !found) return;
  showError(null);
  const untrained = make("p", { className: "note", textContent: "The base has no trained head: choose an adapter, which brings its own." });
  at("result").replaceChildren(
    ...(opened.labelsAreUntrained ? [untrained] : found.kind === "regression" ? numbers(found.values ?? {}) : bars(found.probabilities)),
  );
  showTimes({ swap: milliseconds(swapped), "text to label": milliseconds(performance.now() - start), tokens: opened.encoder?.encode(text).ids.length ?? 0 });
  await compare(opened, text, mine);
  if (mine === turn) await swap(opened);
}

/** @param {Runtime} opened @param {string} text @param {number} mine */
async function compare(opened, text, mine) {
  const rows = [];
  for (const name of opened.adapters) {
    try {
      const start = performance.now();
      await opened.use(name);
      const swapped = performance.now();
      const [found] = await opened.predict([text]);
      if (mine !== turn || !found) return;
      const shown = found.kind === "regression" ? found.score.toFixed(3) : `${(found.score * 100).toFixed(1)} %`;
      rows.push([name, found.label, shown, milliseconds(swapped - start), milliseconds(performance.now() - swapped)]);
    } catch (error) {
      rows.push([name, /** @type {Error} */ (error).name, "–", "–", "–"]);
    }
  }
  at("all").replaceChildren(tableOf(["adapter", "label", "probability", "swap", "run"], rows));
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
          answer().catch(failed);
        },
      }),
    ),
  );
}

const answer = () => (speaks() ? generate() : run());
let waiting = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
const soon = () => {
  settings();
  clearTimeout(waiting);
  if (!speaks()) waiting = setTimeout(() => run().catch(failed), 150);
};
for (const id of ["text", "scale", "share", "other", "temperature"]) at(id).oninput = soon;
at("text").onkeydown = (/** @type {KeyboardEvent} */ event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) answer().catch(failed);
};
at("generate").onclick = () => generate().catch(failed);
for (const id of ["variant", "device"]) at(id).onchange = () => open(at("variant").value, at("device").value);

at("text").value = parameters.get("text") ?? "";
chosen = parameters.get("adapter") ?? BASE;
const found = await findGpu().catch(() => null);
at("devices").hidden = found === null;
at("device").value = found !== null && parameters.get("device") === "webgpu" ? "webgpu" : "wasm";
await open(parameters.get("variant") ?? undefined, at("device").value);
