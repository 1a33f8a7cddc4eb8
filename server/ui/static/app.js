// The page: puts its parts together.

import { key, read } from "./api.js";
import { Chat } from "./chat.js";
import { byId, element } from "./dom.js";
import { KeyDialog } from "./key.js";
import { Live } from "./live.js";
import { Parameters } from "./parameters.js";
import { showPlatform } from "./platform.js";
import { statsOf } from "./stats.js";
import { Views } from "./views.js";

const MAKES = { embed: "makes embeddings", classify: "gives labels", score: "gives scores" };

const picker = byId("model");
const keys = new KeyDialog();
const live = new Live();
const views = new Views((view) => live.look(view === "live"));
const parameters = new Parameters(() => views.choose("parameters"));
new Chat({
  model: () => picker.value,
  options: () => parameters.options(),
  askKey: (message) => keys.ask(message),
});

picker.addEventListener("change", choose);
byId("change-key").addEventListener("click", async () => (await keys.ask()) && start());
start();

/** Find out what is served. */
async function start() {
  say(null);
  byId("change-key").hidden = !key();
  try {
    const { data } = await withKey(() => read("v1/models"));
    const asked = picker.value;
    const options = data.map(({ id }) => element("option", { value: id, selected: id === asked }, id));
    picker.replaceChildren(...options);
    picker.disabled = data.length < 2;
    await choose();
  } catch (error) {
    say(error.message, start);
  }
}

/** Show what is known of the chosen model. */
async function choose() {
  const model = picker.value;
  document.title = `${model} · core`;
  const stats = await statsOf(model);
  showPlatform(stats);
  parameters.suit(stats.sampling_defaults);
  live.watch(model);
  views.chatting(stats.chat);
  say(stats.chat ? null : `There is nothing to chat with: ${model} ${whyNot(stats)}.`);
}

function whyNot({ task }) {
  return task === "generate" ? "has no chat template" : (MAKES[task] ?? `is for ${task}`);
}

async function withKey(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 401 || !(await keys.ask(error.message))) throw error;
    }
  }
}

function say(message, again) {
  const notice = byId("notice");
  notice.hidden = !message;
  notice.replaceChildren(element("p", {}, message ?? ""));
  if (again) notice.append(element("button", { class: "quiet", type: "button", onclick: again }, "Try again"));
}
