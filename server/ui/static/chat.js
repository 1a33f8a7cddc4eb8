// The chat: sends what is written, shows the answer as it arrives, stops it, asks for another.

import { ApiError, stream } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId } from "./dom.js";
import { Speech } from "./speech.js";
import { Transcript } from "./transcript.js";

export class Chat {
  /**
   * model    () => the name of the model to ask
   * options  () => {system, parameters}; null while one of them is wrong
   * askKey   (message) => promise of whether a key was given
   */
  constructor({ model, options, askKey }) {
    this._model = model;
    this._options = options;
    this._askKey = askKey;
    this._conversation = new Conversation();
    this._transcript = new Transcript(() => this.again(), (text) => this._suggest(text));
    this._speech = new Speech();
    this._stopping = null;
    this._message = byId("message");
    this._listen();
    this._transcript.showAll(this._conversation.turns);
    this._showButtons();
  }

  /** Send what is written. */
  send() {
    const content = this._message.value.trim();
    const options = content && !this._stopping && this._options();
    if (!options) return;
    this._transcript.add(this._conversation.add({ role: "user", content }));
    this._message.value = "";
    this._ask(options);
  }

  /** Answer the last question anew. */
  again() {
    const options = !this._stopping && this._options();
    if (!options) return;
    this._conversation.dropAnswer();
    this._transcript.showAll(this._conversation.turns);
    this._message.focus();
    this._ask(options);
  }

  /** End the answer under way. What has arrived stays. */
  stop() {
    this._stopping?.abort();
  }

  /** Forget everything that was said. */
  clear() {
    this.stop();
    this._conversation.clear();
    this._transcript.showAll([]);
    this._showButtons();
    this._speech.say("The conversation is cleared");
    this._message.focus();
  }

  _suggest(text) {
    this._message.value = text;
    this._message.focus();
  }

  _listen() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this._message.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.stop());
    addEventListener("beforeunload", () => this.stop()); // before the browser breaks the connection
    addEventListener("pagehide", () => this._conversation.keep());
  }

  async _ask({ system, parameters }) {
    const messages = this._conversation.messages(system);
    const turn = this._conversation.add({ role: "assistant", content: "" });
    this._conversation.keep();
    this._stopping = new AbortController();
    this._transcript.add(turn);
    this._showButtons();
    this._speech.say("Answering");
    try {
      await this._read({ model: this._model(), messages, ...parameters }, turn);
    } catch (error) {
      this._fail(turn, error);
    }
    this._finish(turn);
  }

  async _read(question, turn) {
    const body = { ...question, stream: true, stream_options: { include_usage: true } };
    const asked = performance.now();
    let began = asked;
    let reason = "stop";
    const events = stream("v1/chat/completions", body, this._stopping.signal);
    for await (const { choices: [choice], usage } of events) {
      const text = choice?.delta.content;
      if (text) {
        if (!turn.content) began = performance.now();
        turn.content += text;
        this._speech.more(text);
        this._transcript.grown();
      }
      reason = choice?.finish_reason ?? reason;
      if (usage) turn.facts = factsOf(usage, asked, began);
    }
    turn.ending = reason;
  }

  _fail(turn, error) {
    turn.ending = error.name === "AbortError" ? "stopped" : "failed";
    if (turn.ending === "stopped") return;
    turn.error = error instanceof ApiError ? error.message : `This page failed: ${error.message}`;
    if (error.status === 401) this._askKey(turn.error).then((given) => given && this.again());
  }

  _finish(turn) {
    this._stopping = null;
    this._speech.end(turn.error ? "" : turn.ending === "stopped" ? "Stopped" : "End of the answer");
    if (this._conversation.last === turn) {
      this._conversation.keep();
      this._transcript.draw();
    }
    this._showButtons();
  }

  _showButtons() {
    const writing = this._stopping !== null;
    byId("send").hidden = writing;
    byId("stop").hidden = !writing;
    byId("clear").hidden = !this._conversation.turns.length;
  }
}

function factsOf(usage, asked, began) {
  const seconds = (performance.now() - began) / 1000;
  return { tokens: usage.completion_tokens, seconds, first: (began - asked) / 1000 };
}
