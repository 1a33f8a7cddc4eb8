// Which part of the page is looked at. On a wide screen the chat stays beside the others.

import { byId } from "./dom.js";

const KEPT = "core.view";
const WIDE = "(min-width: 60rem)";

export class Views {
  /** `changed` is called with the name of a view when it comes to be looked at. */
  constructor(changed) {
    this._changed = changed;
    this._buttons = [...document.querySelectorAll("[data-shows]")];
    for (const button of this._buttons) {
      button.addEventListener("click", () => this.choose(button.dataset.shows));
    }
    this._show(sessionStorage.getItem(KEPT) ?? (matchMedia(WIDE).matches ? "live" : "chat"));
  }

  get shown() {
    return document.body.dataset.view;
  }

  /** Look at this view, after a reload as well. */
  choose(name) {
    sessionStorage.setItem(KEPT, name);
    this._show(name);
  }

  /** Whether there is something to chat with. Without it the other views get the room. */
  chatting(possible) {
    document.body.dataset.chat = possible ? "on" : "off";
    byId("composer").hidden = byId("conversation").hidden = !possible;
    for (const button of this._buttons) button.hidden = !possible && isOfChat(button.dataset.shows);
    if (!possible && isOfChat(this.shown)) this._show("live");
  }

  _show(name) {
    document.body.dataset.view = name;
    for (const button of this._buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.shows === name));
    }
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = panel.id !== name;
    this._changed(name);
  }
}

function isOfChat(view) {
  return view === "chat" || view === "parameters";
}
