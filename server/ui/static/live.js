// The live charts: asks once a second, and only while somebody looks.

import { Chart } from "./chart.js";
import { byId, element } from "./dom.js";
import { count, duration, percent } from "./format.js";
import { sampleOf, statsOf } from "./stats.js";

const EVERY_MS = 1000;
const KEPT_SAMPLES = 150;

export class Live {
  constructor() {
    this._model = null;
    this._shown = false;
    this._timer = null;
    this._round = 0;
    this._samples = [];
    this._charts = charts();
    this._figures = element("dl", { class: "figures" });
    byId("charts").append(this._figures, ...this._charts.map((chart) => chart.root));
    document.addEventListener("visibilitychange", () => this._resume());
  }

  /** Show this model from now on. */
  watch(model) {
    this._model = model;
    this._samples = [];
    this._resume();
  }

  /** Whether the panel is looked at. */
  look(shown) {
    this._shown = shown;
    this._resume();
  }

  _resume() {
    clearTimeout(this._timer);
    this._round += 1; // whatever is still being asked for comes too late
    if (this._shown && this._model && document.visibilityState === "visible") this._poll(this._round);
  }

  async _poll(round) {
    let said = "";
    try {
      const stats = await statsOf(this._model);
      if (round !== this._round) return;
      this._take(stats);
      if (!stats.alive) said = "The engine is not running";
    } catch (error) {
      if (round !== this._round) return;
      said = error.message;
    }
    byId("live-state").textContent = said;
    this._timer = setTimeout(() => this._resume(), EVERY_MS);
  }

  _take(stats) {
    this._samples.push(sampleOf(stats, this._samples.at(-1)));
    this._samples = this._samples.slice(-KEPT_SAMPLES);
    for (const chart of this._charts) chart.show(this._samples);
    const figures = {
      "Up for": duration(stats.uptime),
      "Prefix cache hits": stats.prefix_cache_hit_rate === null ? "–" : percent(stats.prefix_cache_hit_rate),
      Preemptions: count(stats.num_preemptions),
      "Tokens generated": count(stats.generation_tokens),
    };
    const entries = Object.entries(figures).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value)),
    );
    this._figures.replaceChildren(...entries);
  }
}

function charts() {
  const perSecond = (value) => `${count(value)}/s`;
  const percentiles = (of) => ["p50", "p99"].map((name) => ({ label: name, of: (sample) => of(sample)[name] }));
  return [
    {
      title: "Tokens per second",
      format: perSecond,
      least: 10,
      series: [
        { label: "generated", of: (sample) => sample.generated },
        { label: "of prompts", of: (sample) => sample.prompt },
      ],
    },
    {
      title: "Time to the first token",
      format: duration,
      least: 0.01,
      series: percentiles((sample) => sample.first),
    },
    {
      title: "Time between tokens",
      format: duration,
      least: 0.005,
      series: percentiles((sample) => sample.between),
    },
    {
      title: "KV cache in use",
      format: percent,
      least: 1,
      most: 1,
      series: [{ label: "of its blocks", of: (sample) => sample.cache }],
    },
    {
      title: "Requests",
      format: count,
      least: 5,
      series: [
        { label: "running", of: (sample) => sample.running },
        { label: "waiting", of: (sample) => sample.waiting },
      ],
    },
  ].map((chart) => new Chart(chart));
}
