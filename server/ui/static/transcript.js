// The conversation as it is seen: its turns, an answer that grows, and the place that is looked at.

import { byId, element } from "./dom.js";
import { AnswerView, questionView } from "./turn.js";

const NEAR_END_PX = 80;
const EXAMPLES = ["Explain how a tide comes about.", "Write a haiku about winter.", "List three uses of vinegar."];

export class Transcript {
  /** `again` is called when another answer is asked for, `suggest` with an example that was chosen. */
  constructor(again, suggest) {
    this._place = byId("conversation");
    this._again = again;
    this._suggest = suggest;
    this._last = null;
    this._frame = 0;
  }

  /** Show these turns, the last at the end. */
  showAll(turns) {
    this._last = null;
    const views = turns.map((turn) => this._viewOf(turn));
    this._place.replaceChildren(...(views.length ? views : [this._welcome()]));
    this._toEnd();
  }

  /** Show one more turn. */
  add(turn) {
    if (!this._place.querySelector(".turn")) this._place.replaceChildren();
    this._place.append(this._viewOf(turn));
    this._toEnd();
  }

  /** The last answer has grown: show it with the next frame, so that many deltas are drawn once. */
  grown() {
    this._frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Show the last answer as it is now. Whoever has scrolled up stays there. */
  draw() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    const { scrollHeight, scrollTop, clientHeight } = this._place;
    this._last?.update();
    if (scrollHeight - scrollTop - clientHeight < NEAR_END_PX) this._toEnd();
  }

  _viewOf(turn) {
    this._last?.settle();
    this._last = turn.role === "user" ? null : new AnswerView(turn, this._again);
    return this._last?.root ?? questionView(turn);
  }

  _welcome() {
    const examples = EXAMPLES.map((text) =>
      element("button", { class: "example", type: "button", onclick: () => this._suggest(text) }, text),
    );
    const title = element("h2", {}, "What would you like to know?");
    return element("div", { class: "welcome" }, title, element("div", { class: "examples" }, ...examples));
  }

  _toEnd() {
    this._place.scrollTop = this._place.scrollHeight;
  }
}
