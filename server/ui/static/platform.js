// The ledger: what was chosen when the model was loaded, from whom, and why not the others.

import { byId, element } from "./dom.js";
import { bytes, count } from "./format.js";

/** Show what the server says of a model. */
export function showPlatform(stats) {
  const facts = {
    Model: stats.name,
    Architecture: stats.architecture,
    Platform: `${stats.platform} (${stats.device})`,
    Weights: stats.quantization === "none" ? stats.dtype : `${stats.dtype}, ${stats.quantization}`,
    "KV cache": `${count(stats.num_kv_tokens)} tokens of ${stats.kv_cache_dtype}, ${bytes(stats.kv_cache_bytes)}`,
    Context: `${count(stats.max_model_len)} tokens`,
    "At once": `${count(stats.max_num_seqs)} requests`,
  };
  byId("facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", {}, value),
    ]),
  );
  byId("ledger").replaceChildren(table(stats.ledger));
}

function table(choices) {
  const head = ["What", "Served by"].map((title) => element("th", { scope: "col" }, title));
  return element(
    "table",
    { class: "ledger" },
    element("caption", { class: "visually-hidden" }, "What runs where, and why"),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...choices.map(row)),
  );
}

function row({ what, provider, detail, rejected }) {
  const served = element("td", {}, element("strong", {}, provider));
  if (detail) served.append(element("span", { class: "detail" }, detail));
  for (const other of rejected) {
    served.append(element("span", { class: "rejected" }, `not ${other.provider}: ${other.reason}`));
  }
  return element("tr", {}, element("th", { scope: "row" }, what), served);
}
