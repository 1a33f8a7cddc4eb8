// The panel of parameters. A field that is empty is not sent; one that holds the default is not sent, either.

import { byId, element } from "./dom.js";

const KEPT = "core.parameters";
const LARGEST = Number.MAX_SAFE_INTEGER;
const COUNT = { min: 0, max: 2 ** 31, step: 1 };

// `fallback` is what the server takes where the model's own generation_config says nothing; `empty` says so where
// that is no number.
const NUMBERS = [
  number("temperature", "Temperature", "0 takes the likeliest", { min: 0, max: 100, fallback: 1 }),
  number("top_p", "Top p", "The likeliest, to this sum", { min: 0, max: 1, fallback: 1 }),
  number("top_k", "Top k", "So many; 0 takes all", { ...COUNT, fallback: 0 }),
  number("min_p", "Min p", "Of the likeliest one", { min: 0, max: 1, fallback: 0 }),
  number("max_completion_tokens", "Max tokens", "Length of an answer", { ...COUNT, min: 1, empty: "no limit" }),
  number("seed", "Seed", "For the same answer again", { min: -LARGEST, max: LARGEST, step: 1, empty: "random" }),
  number("presence_penalty", "Presence penalty", "For what was said", { min: -2, max: 2, fallback: 0 }),
  number("frequency_penalty", "Frequency penalty", "For each time", { min: -2, max: 2, fallback: 0 }),
  number("repetition_penalty", "Repetition penalty", "1 is none", { min: 0, max: 100, fallback: 1 }),
];
const TEXTS = [
  { name: "system", label: "System prompt", hint: "What the model is to be told first", rows: 4 },
  { name: "stop", label: "Stop", hint: "Texts that end an answer, one per line; \\n is a line break", rows: 2 },
];

export class Parameters {
  /** `wrong` is called when a value must be looked at before anything can be sent. */
  constructor(wrong) {
    this._wrong = wrong;
    this._defaults = {};
    this._form = byId("fields");
    this._form.append(textField(TEXTS[0]), ...NUMBERS.map(numberField), textField(TEXTS[1]));
    this._restore();
    this._form.addEventListener("input", () => this._changed());
    this._form.addEventListener("submit", (event) => event.preventDefault());
    byId("reset").addEventListener("click", () => this.reset());
    this._changed();
  }

  /** Show what a model's own generation_config asks for. */
  suit(defaults) {
    this._defaults = defaults;
    for (const { name, fallback, empty } of NUMBERS) {
      this._field(name).placeholder = defaults[name] ?? fallback ?? empty;
    }
    this._changed();
  }

  /** {system, parameters} to send; null when a value is wrong, which is then shown. */
  options() {
    const wrong = NUMBERS.map(({ name }) => this._field(name)).find((field) => !field.checkValidity());
    if (wrong) {
      this._wrong();
      wrong.reportValidity();
      return null;
    }
    return { system: this._field("system").value.trim(), parameters: this._parameters() };
  }

  /** Leave everything to the model again. */
  reset() {
    this._form.reset();
    this._changed();
  }

  _parameters() {
    const sent = {};
    for (const { name, fallback } of NUMBERS) {
      const { value, valueAsNumber } = this._field(name);
      if (value !== "" && valueAsNumber !== (this._defaults[name] ?? fallback)) sent[name] = valueAsNumber;
    }
    const stop = this._field("stop").value.split("\n").filter(Boolean);
    if (stop.length) sent.stop = stop.map((text) => text.replaceAll("\\n", "\n"));
    return sent;
  }

  _changed() {
    const given = [...this._form.elements].map(({ name, value }) => [name, value]).filter(([, value]) => value);
    sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(given)));
    const count = Object.keys(this._parameters()).length + (this._field("system").value.trim() ? 1 : 0);
    const badge = byId("changed");
    badge.hidden = !count;
    badge.replaceChildren(String(count), element("span", { class: "visually-hidden" }, " set"));
    byId("reset").disabled = !given.length;
  }

  _restore() {
    for (const [name, value] of Object.entries(JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"))) {
      this._field(name).value = value;
    }
  }

  _field(name) {
    return this._form.elements.namedItem(name);
  }
}

function number(name, label, hint, { min, max, step = "any", fallback, empty }) {
  return { name, label, hint, min, max, step, fallback, empty };
}

function numberField({ name, label, hint, min, max, step }) {
  const limits = { min, max, step, inputmode: min < 0 ? "text" : "decimal" };
  const input = element("input", { ...fieldOf(name), type: "number", ...limits });
  return labelled(name, label, hint, input, "field");
}

function textField({ name, label, hint, rows }) {
  return labelled(name, label, hint, element("textarea", { ...fieldOf(name), rows }), "field wide");
}

function fieldOf(name) {
  return { id: `p-${name}`, name, "aria-describedby": `h-${name}` };
}

function labelled(name, label, hint, input, kind) {
  const title = element("label", { for: `p-${name}` }, label);
  return element("div", { class: kind }, title, input, element("p", { id: `h-${name}`, class: "hint" }, hint));
}
