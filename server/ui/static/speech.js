// What a screen reader says of an answer that is being written: whole sentences, each once.

import { byId, element } from "./dom.js";

const LONGEST = 240;
const SENTENCE = new RegExp(`^[\\s\\S]*?(?:[.!?:](?=\\s)|\\n)|^[\\s\\S]{${LONGEST}}`);

export class Speech {
  constructor() {
    this._region = byId("spoken");
    this._pending = "";
  }

  /** Something short, after which whatever was said before is gone. */
  say(text) {
    this._pending = "";
    this._region.replaceChildren(element("p", {}, text));
  }

  /** More of an answer. */
  more(text) {
    this._pending += text;
    for (let found = SENTENCE.exec(this._pending); found; found = SENTENCE.exec(this._pending)) {
      this._append(found[0]);
      this._pending = this._pending.slice(found[0].length);
    }
  }

  /** The answer is over, in this way. */
  end(how) {
    this._append(this._pending);
    this._append(how);
    this._pending = "";
  }

  _append(text) {
    if (text.trim()) this._region.append(element("p", {}, text.trim()));
  }
}
