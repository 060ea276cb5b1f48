// The charts, by uPlot.

import { bytes, clock, duration, formatLSN } from "./format.js";

const { uPlot } = window;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const powers = (base, count) => Array.from({ length: count }, (_, i) => base ** i);

const seconds = [5, 10, 15, 30, 60, 120, 180, 300]; // between two times that are named

// A scale's ticks, and its least range: an idle replica is a flat line, and not noise.
const kinds = {
  lsn: { text: formatLSN, least: 4096, steps: powers(2, 53), width: 11 },
  bytes: { text: bytes, least: 1024, steps: powers(2, 53), width: 8, zero: true },
  time: { text: duration, least: 1000, steps: powers(10, 12).flatMap((p) => [p, 2 * p, 5 * p]), width: 8, zero: true },
};

function range({ least, zero }, min, max) {
  if (min == null) return [0, least];
  const spare = Math.max((max - min) * 0.1, least / 8);
  const low = zero ? 0 : Math.max(0, min - spare);
  return [low, Math.max(max + spare, low + least)];
}

// Chart draws columns of samples into an element.
export class Chart {
  #element;
  #kind;
  #series;
  #plot = null;
  #window = [0, 1];
  #marks = [];
  empty = "No data yet"; // what stands there instead

  // series are {label, color, dash} for each column after the time; color names a variable of page.css.
  constructor(element, kind, series) {
    this.#element = element;
    this.#kind = kinds[kind];
    this.#series = series;
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(element);
  }

  // draw shows columns between two times in s, with lines at the times of marks.
  draw(columns, window, marks) {
    this.#window = window;
    this.#marks = marks;
    const empty = columns[1].every((v) => v == null);
    if (empty) this.#element.dataset.empty = this.empty;
    else delete this.#element.dataset.empty;
    if (this.#plot) this.#plot.setData(columns);
    else this.#plot = new uPlot(this.#options(), columns, this.#element);
  }

  // restyle has the colours taken anew.
  restyle() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  #size() {
    return { width: this.#element.clientWidth, height: this.#element.clientHeight };
  }

  #options() {
    const { text, steps, width } = this.#kind;
    const font = `12px ${css("--font")}`;
    const line = { stroke: css("--grid"), width: 1 };
    const axis = { stroke: css("--dim"), font, grid: line, ticks: { ...line, size: 4 } };
    return {
      ...this.#size(),
      legend: { show: false },
      padding: [8, 32, 0, 0], // the last time's label is centred on its line
      cursor: { drag: { x: false, y: false }, sync: { key: "walwake" }, points: { size: 6 } },
      scales: { x: { time: true, range: () => this.#window }, y: { range: (_, min, max) => range(this.#kind, min, max) } },
      axes: [
        { ...axis, space: 76, size: 30, incrs: seconds, values: (_, ticks) => ticks.map((s) => clock(s * 1000)) },
        { ...axis, space: 32, size: width * 7 + 12, incrs: steps, values: (_, ticks) => ticks.map(text) },
      ],
      series: [
        {},
        ...this.#series.map(({ label, color, dash }) => ({ label, stroke: css(color), width: 2, dash, points: { show: false } })),
      ],
      hooks: { drawClear: [(plot) => this.#mark(plot)], setCursor: [(plot) => this.#point(plot)] },
    };
  }

  // #point writes what the cursor is at.
  #point(plot) {
    const { idx } = plot.cursor;
    const values = idx == null ? [] : plot.data.slice(1).map((column) => column[idx]);
    const named = values.map((v, i) => (v == null ? "" : `${this.#series[i].label} ${this.#kind.text(v)}`)).filter(Boolean);
    const text = named.length === 0 ? "" : `${clock(plot.data[0][idx] * 1000)}: ${named.join(", ")}`;
    this.#element.parentElement.querySelector(".at").textContent = text;
  }

  #mark(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = css("--mark");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    for (const t of this.#marks) {
      if (t < this.#window[0] || t > this.#window[1]) continue;
      const x = Math.round(plot.valToPos(t, "x", true)) + 0.5;
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
  }
}
