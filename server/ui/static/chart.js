// A line chart of the last two minutes: lines, a scale, and what they are now or where the pointer is.

import { drawn, element } from "./dom.js";

const WINDOW_S = 120;
const GAP_S = 4; // nobody looked for so long: the line is interrupted
const WIDTH = 360;
const HEIGHT = 96;

export class Chart {
  /**
   * title   what it shows
   * format  (value) => text
   * least   the scale ends no lower than here
   * most    and always here, if given
   * series  [{label, of: (sample) => value or null}], one or two; a sample has `at`, in seconds
   */
  constructor({ title, format, least, most, series }) {
    this._title = title;
    this._format = format;
    this._least = least;
    this._most = most;
    this._series = series;
    this._samples = [];
    this._build();
  }

  /** Draw these samples, of which the last is now. */
  show(samples) {
    this._samples = samples.filter(({ at }) => samples.at(-1).at - at <= WINDOW_S);
    const top = this._most ?? roundUp(Math.max(this._least, ...this._values()));
    this._top.textContent = this._format(top);
    this._series.forEach(({ of }, i) => {
      const runs = this._runs(of, top);
      this._lines[i].setAttribute("d", runs.map((points) => `M${points.join("L")}`).join(""));
      if (i === 0) this._area.setAttribute("d", runs.map(areaUnder).join(""));
    });
    this._say(this._pointed ?? this._samples.at(-1));
  }

  _build() {
    const rules = [0, 0.5, 1].map((part) => {
      const y = 1 + (HEIGHT - 2) * part;
      return drawn("line", { class: "rule", x1: 0, x2: WIDTH, y1: y, y2: y });
    });
    this._area = drawn("path", { class: "area" });
    this._lines = this._series.map((_, i) => drawn("path", { class: `line line-${i}` }));
    this._pointer = drawn("line", { class: "pointer", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this._drawing = drawn(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      ...rules,
      this._area,
      ...this._lines,
      this._pointer,
    );
    this._top = element("span", { class: "top" });
    const ends = ["2 min ago", "now"].map((text) => element("span", {}, text));
    const times = element("div", { class: "times" }, ...ends);
    const plot = element(
      "div",
      { class: "plot", onpointermove: (event) => this._point(event), onpointerleave: () => this._point(null) },
      this._top,
      this._drawing,
    );
    const title = element("figcaption", {}, this._title);
    this.root = element("figure", { class: "chart" }, title, this._legend(), plot, times);
  }

  _legend() {
    this._now = this._series.map(() => element("b", {}, "–"));
    const entries = this._series.map(({ label }, i) => {
      const swatch = element("span", { class: `swatch swatch-${i}` });
      return element("li", {}, swatch, element("span", {}, label), this._now[i]);
    });
    return element("ul", { class: "legend" }, ...entries);
  }

  _values() {
    return this._samples.flatMap((sample) => this._series.map(({ of }) => of(sample) ?? 0));
  }

  /** Points of the line, as "x y", in a list for each run without a gap. */
  _runs(of, top) {
    const runs = [];
    let before = -Infinity;
    for (const sample of this._samples) {
      const value = of(sample);
      if (value === null) continue;
      if (sample.at - before > GAP_S) runs.push([]);
      const y = 1 + (HEIGHT - 2) * (1 - Math.min(1, value / top));
      runs.at(-1).push(`${this._x(sample).toFixed(1)} ${y.toFixed(1)}`);
      before = sample.at;
    }
    return runs;
  }

  _x({ at }) {
    return WIDTH * (1 - (this._samples.at(-1).at - at) / WINDOW_S);
  }

  _point(event) {
    this._pointed = null;
    if (event && this._samples.length) {
      const { left, width } = this._drawing.getBoundingClientRect();
      const x = (WIDTH * (event.clientX - left)) / width;
      const distance = (sample) => Math.abs(this._x(sample) - x);
      const nearer = (one, other) => (distance(other) < distance(one) ? other : one);
      this._pointed = this._samples.reduce(nearer);
    }
    this._pointer.setAttribute("visibility", this._pointed ? "visible" : "hidden");
    if (this._samples.length) this._say(this._pointed ?? this._samples.at(-1));
  }

  _say(sample) {
    const texts = this._series.map(({ of }) => (of(sample) === null ? "–" : this._format(of(sample))));
    texts.forEach((text, i) => (this._now[i].textContent = text));
    const said = this._series.map(({ label }, i) => `${label} ${texts[i]}`).join(", ");
    this._drawing.setAttribute("aria-label", `${this._title} over the last two minutes. Now: ${said}`);
    for (const end of ["x1", "x2"]) this._pointer.setAttribute(end, this._x(sample));
  }
}

/** The next of 1, 2, 5, 10, 20 … that is not smaller. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((end) => end >= value * 0.9999);
}

function areaUnder(points) {
  const [first] = points[0].split(" ");
  const [last] = points.at(-1).split(" ");
  return `M${first} ${HEIGHT}L${points.join("L")}L${last} ${HEIGHT}Z`;
}
