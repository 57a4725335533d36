/** What the demo page shows: elements made of results, and nothing that decides. */

/** @param {string} id */
export const at = (id) => /** @type {any} */ (document.getElementById(id));

/** @param {string} tag @param {object} [properties] @param {(Node | string)[]} children */
export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export const milliseconds = (/** @type {number} */ ms) =>
  ms < 0.1 ? "<0.1 ms" : ms < 10 ? `${ms.toFixed(1)} ms` : ms < 1000 ? `${ms.toFixed(0)} ms` : `${(ms / 1e3).toFixed(1)} s`;
export const megabytes = (/** @type {number} */ bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** @param {"opening" | "ready" | "failed"} state */
export function setState(state) {
  document.body.dataset.state = state;
  at("progress").hidden = state !== "opening";
  // Where one variant failed, another may open.
  at("controls").disabled = state === "opening" || !at("adapters").children.length;
}

/** An error in words, or none. @param {unknown} error @param {() => void} [again]  What a button then does. */
export function showError(error, again) {
  const failure = /** @type {Error | null} */ (error);
  at("error").hidden = failure === null;
  if (failure === null) return;
  const parts = [make("strong", { textContent: failure.name }), make("p", { textContent: failure.message })];
  if (again !== undefined) parts.push(make("button", { type: "button", textContent: "Try again", onclick: again }));
  at("error").replaceChildren(...parts);
}

/** Files as they arrive. @param {(line: string) => void} say */
export function arrival(say) {
  /** @type {Map<string, [number, number]>} */
  const parts = new Map();
  return (/** @type {string} */ file, /** @type {number} */ bytes, /** @type {number} */ total) => {
    parts.set(file, [bytes, total]);
    const [done, whole] = [...parts.values()].reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    if (done < whole) at("progress").value = done / whole;
    else at("progress").removeAttribute("value"); // how long a session takes is not known
    say(done < whole ? `Fetching the base: ${megabytes(done)} of ${megabytes(whole)}` : `${megabytes(whole)} are here and checked; making a session…`);
  };
}

/** One of several names, chosen with a click, or with arrow keys as a group of radio buttons is. */
export class Choice {
  /** @param {HTMLElement} group @param {(name: string) => void} chosen */
  constructor(group, chosen) {
    this.group = group;
    this.chosen = chosen;
    group.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const buttons = /** @type {HTMLButtonElement[]} */ ([...group.children]);
      if (step === undefined || !buttons.length) return;
      event.preventDefault();
      const now = buttons.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
      const next = buttons[(now + step + buttons.length) % buttons.length];
      next?.focus();
      next?.click();
    };
  }

  /** @param {[string, string][]} names  What each is called, and what it says. */
  offer(names) {
    this.group.replaceChildren(
      ...names.map(([name, text]) => {
        const button = make("button", { type: "button", textContent: text, onclick: () => this.chosen(name) });
        button.setAttribute("role", "radio");
        button.dataset.name = name;
        return button;
      }),
    );
  }

  /** @param {string} name */
  show(name) {
    for (const button of /** @type {HTMLButtonElement[]} */ ([...this.group.children])) {
      const on = button.dataset.name === name;
      button.setAttribute("aria-checked", String(on));
      button.tabIndex = on ? 0 : -1;
    }
  }
}

/** The outputs of a head of numbers. @param {Record<string, number>} values */
export function numbers(values) {
  return Object.entries(values).map(([name, value]) =>
    make("div", { className: "row" }, make("span", { textContent: name, title: name }), make("span", { className: "number", textContent: value.toFixed(4) })),
  );
}

/** @param {Record<string, number>} probabilities */
export function bars(probabilities) {
  return Object.entries(probabilities)
    .sort(([, a], [, b]) => b - a)
    .map(([label, probability], position) => {
      const value = make("div", { className: "value" });
      value.style.width = `${probability * 100}%`;
      return make(
        "div",
        { className: position === 0 ? "row best" : "row" },
        make("span", { textContent: label, title: label }),
        make("div", { className: "track" }, value),
        make("span", { className: "number", textContent: `${(probability * 100).toFixed(1)} %` }),
      );
    });
}

/** @param {Record<string, string | number>} values */
export function showTimes(values) {
  at("times").replaceChildren(
    ...Object.entries(values).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: String(value) }))),
  );
}

/** @param {string[]} head @param {string[][]} rows */
export function tableOf(head, rows) {
  /** @param {string} tag @param {string[]} cells */
  const line = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, { textContent: cell })));
  return make("table", {}, make("thead", {}, line("th", head)), make("tbody", {}, ...rows.map((row) => line("td", row))));
}
