// The page of walwake serve: see doc.go beside this folder.

import { Chart } from "./chart.js";
import { bytes, duration, formatLSN } from "./format.js";
import { Model } from "./model.js";
import { Sidecar } from "./stream.js";
import * as view from "./view.js";

const { $ } = view;
const tooMany = 429;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const model = new Model();
const charts = {
  position: new Chart($("chart-position"), "lsn", [
    { label: "replica", color: "--replica" },
    { label: "primary", color: "--primary", dash: [6, 4] },
  ]),
  bytes: new Chart($("chart-bytes"), "bytes", [{ label: "lag", color: "--replica" }]),
  time: new Chart($("chart-time"), "time", [{ label: "lag", color: "--replica" }]),
};
let paused = false;
let changed = true; // since it was last drawn

const sidecar = new Sidecar({
  opened() {
    model.opened();
    look();
    show();
  },
  event(name, data) {
    const was = model.state;
    model.take(name, data);
    if (name === "position") changed = true;
    else show();
    if (name === "state" && was?.boot !== data.boot) look();
  },
  async lost(why, at, status) {
    if (status === tooMany) {
      try { // without a stream of its own the page asks
        const position = await sidecar.get("v1/position");
        model.opened();
        model.trouble = why;
        model.take("state", position);
        show();
        return;
      } catch {} // what follows says it
    }
    model.lost(why, at);
    show();
  },
  locked(refused) {
    model.locked(refused);
    show();
    $("token").focus();
  },
});

// look asks for what the stream does not tell.
async function look() {
  if (model.link !== "open") return;
  try {
    model.fleet = await sidecar.get("v1/fleet");
    if (model.state?.known) model.state.streams = (await sidecar.get("v1/position")).streams;
  } catch {} // the stream says what is wrong
  changed = true;
}

// show writes what a person must see at once, and the rest.
function show() {
  view.status(model);
  announce();
  changed = true;
  draw();
}

// draw writes the rest. The state at the top is told of also while the page is paused.
function draw() {
  if (!changed || paused || document.hidden) return;
  changed = false;
  view.figures(model);
  view.ladder(model);
  view.events(model);
  view.fleet(model);
}

function drawCharts() {
  if (paused || document.hidden) return;
  const span = Number($("span").value);
  const to = Date.now() / 1000;
  const window = [to - span, to];
  const [times, lsns, primaries, lagBytes, lagTime] = model.columns;
  const marks = model.events.map((e) => e.at / 1000);
  charts.bytes.empty = charts.time.empty = model.state?.known && !model.state.lag.known ? "Not known: see above" : "No data yet";
  charts.position.draw([times, lsns, primaries], window, marks);
  charts.bytes.draw([times, lagBytes], window, marks);
  charts.time.draw([times, lagTime], window, marks);
  view.samples(model.columns, window);
}

// describe gives the charts names that say what is to be seen.
function describe() {
  if (paused) return;
  const from = Date.now() / 1000 - Number($("span").value);
  const [times, ...rest] = model.columns;
  const first = times.findIndex((t) => t >= from);
  const within = (i) => (first < 0 ? [] : rest[i].slice(first).filter((v) => v != null));
  const name = (id, title, values, text, what) => {
    const label = values.length === 0 ? `${title}, no data yet` : `${title}, ${$("span").selectedOptions[0].text}: ${what(values, text)}`;
    $(id).setAttribute("aria-label", label);
  };
  const top = (values, text) => `now ${text(values.at(-1))}, at most ${text(values.reduce((a, b) => Math.max(a, b)))}`;
  name("chart-position", "Position", within(0), formatLSN, (v, text) => `from ${text(v[0])} to ${text(v.at(-1))}`);
  name("chart-bytes", "Lag in bytes", within(2), bytes, top);
  name("chart-time", "Lag in time", within(3), duration, top);
}

// announce tells screen readers of another state, and not more often than they can read it out.
let announced = "";
let pending = 0;
function announce() {
  if (pending) return;
  pending = setTimeout(() => {
    pending = 0;
    const [, title] = view.summary(model);
    if (title === announced) return;
    announced = title;
    view.put("announcement", title);
    announce();
  }, announced === "" ? 1000 : 3000); // the page opens, and is connected a moment later
}

$("bearer").addEventListener("submit", (e) => {
  e.preventDefault();
  sidecar.use($("token").value.trim());
  $("token").value = "";
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  show();
});
$("span").addEventListener("change", () => {
  drawCharts();
  describe();
});
$("samples").addEventListener("toggle", drawCharts);
dark.addEventListener("change", () => {
  for (const c of Object.values(charts)) c.restyle();
  drawCharts();
});
document.addEventListener("visibilitychange", show);
addEventListener("pagehide", () => sidecar.leave()); // the browser may keep the page to go back to, and its stream with it

// every calls f again and again; slowly for who wants little motion.
function every(ms, slowly, f) {
  setTimeout(() => {
    f();
    every(ms, slowly, f);
  }, calm.matches ? slowly : ms);
}
every(250, 1000, draw);
every(500, 5000, drawCharts);
every(1000, 1000, () => model.sample());
every(5000, 5000, describe);
every(5000, 5000, look);

show();
drawCharts();
sidecar.run();
