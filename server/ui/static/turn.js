// A turn of the conversation as elements.

import { copyButton } from "./copy.js";
import { element } from "./dom.js";
import { show } from "./markdown.js";

const ENDINGS = {
  length: "Ended at the limit of tokens",
  stopped: "Stopped",
};

/** The elements of a question. */
export function questionView(turn) {
  return element("article", { class: "turn question", "aria-label": "You" }, element("p", {}, turn.content));
}

/** The elements of an answer, which `update` brings up to date with its turn. */
export class AnswerView {
  constructor(turn, again) {
    this._turn = turn;
    this._text = element("div", { class: "text" });
    this._alert = element("div", { class: "error", role: "alert", hidden: true });
    this._foot = element("div", { class: "foot", hidden: true });
    this._again = again;
    const parts = [this._text, this._alert, this._foot];
    this.root = element("article", { class: "turn answer", "aria-label": "Answer" }, ...parts);
    this.update();
  }

  update() {
    const { content, ending, error } = this._turn;
    this.root.classList.toggle("writing", !ending);
    this.root.setAttribute("aria-busy", String(!ending));
    show(this._text, content);
    if (!ending) return;
    if (error) this._showError(error);
    this._foot.hidden = false;
    this._foot.replaceChildren(...this._footing());
  }

  /** Only the last answer can be had again. */
  settle() {
    this.root.querySelectorAll(".again").forEach((button) => button.remove());
  }

  _showError(message) {
    this._alert.hidden = false;
    this._alert.replaceChildren(element("p", {}, message), this._againButton("Try again"));
  }

  _footing() {
    const { content, ending, error, facts } = this._turn;
    const parts = [];
    if (content) parts.push(copyButton(() => content, this._text));
    if (!error) parts.push(this._againButton("Regenerate"));
    const said = [ENDINGS[ending], ...figures(facts)].filter(Boolean).join(" · ");
    if (said) parts.push(element("span", { class: "facts-line" }, said));
    return parts;
  }

  _againButton(label) {
    return element("button", { class: "quiet again", type: "button", onclick: this._again }, label);
  }
}

function figures(facts) {
  if (!facts) return [];
  const { tokens, seconds, first } = facts;
  const figures = [];
  if (tokens) figures.push(`${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}`);
  if (tokens > 1 && seconds > 0) figures.push(`${((tokens - 1) / seconds).toFixed(1)} per second`);
  if (first !== undefined) figures.push(`first after ${first.toFixed(2)} s`);
  return figures;
}
