// A button that copies a text.

import { element } from "./dom.js";

const SHOWN_MS = 1600;

/** `text` gives what is copied; `place` holds it, and is selected where a browser forbids pages to copy. */
export function copyButton(text, place) {
  const button = element("button", { class: "quiet", type: "button", onclick: copy }, "Copy");

  async function copy() {
    button.textContent = (await written(text())) ? "Copied" : selected(place);
    setTimeout(() => (button.textContent = "Copy"), SHOWN_MS);
  }

  return button;
}

async function written(text) {
  try {
    await navigator.clipboard.writeText(text); // exists only where the page is local or came by HTTPS
    return true;
  } catch {
    return false;
  }
}

function selected(place) {
  getSelection().selectAllChildren(place);
  return "Selected";
}
