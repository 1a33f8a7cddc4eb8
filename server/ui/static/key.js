// The dialog that asks for the server's key.

import { key, keepKey } from "./api.js";
import { byId } from "./dom.js";

export class KeyDialog {
  constructor() {
    this._dialog = byId("key-dialog");
    this._field = byId("key");
    this._given = null;
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      keepKey(this._field.value.trim());
      this._dialog.close("given");
    });
    this._dialog.addEventListener("close", () => this._close());
  }

  /** A promise of whether a key was given. `message` is what the server said of the last one. */
  ask(message = "") {
    byId("key-error").textContent = key() ? message : ""; // before there was one, nothing was wrong with it
    this._field.value = "";
    if (!this._dialog.open) this._dialog.showModal();
    this._given ??= Promise.withResolvers();
    return this._given.promise;
  }

  _close() {
    byId("change-key").hidden = false;
    this._given.resolve(this._dialog.returnValue === "given");
    this._given = null;
    this._dialog.returnValue = "";
  }
}
