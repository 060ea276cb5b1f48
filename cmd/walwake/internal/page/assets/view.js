// What is known, written into the document. Nothing is written that is there already, so that a selection and the place
// of a screen reader stay.

import { bytes, clock, duration, formatLSN, moment, parseToken, rate, unknown } from "./format.js";

export const $ = (id) => document.getElementById(id);

export function put(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

function show(id, visible) {
  const element = $(id);
  if (element.hidden === visible) element.hidden = !visible;
}

// rows writes a table's body. A cell is a text, or {text, kind} with a class. empty is said where there is no row.
function rows(id, wanted, empty, columns) {
  const body = $(id);
  const key = JSON.stringify(wanted.length > 0 ? wanted : empty);
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  if (wanted.length === 0) {
    const cell = document.createElement("td");
    cell.colSpan = columns;
    cell.className = "note";
    cell.textContent = empty;
    const row = document.createElement("tr");
    row.append(cell);
    body.replaceChildren(row);
    return;
  }
  body.replaceChildren(
    ...wanted.map((cells) => {
      const row = document.createElement("tr");
      row.append(...cells.map((c, i) => cellOf(c, i === 0)));
      return row;
    }),
  );
}

function cellOf(cell, first) {
  const { text, kind } = typeof cell === "string" ? { text: cell } : cell;
  const element = document.createElement(first ? "th" : "td");
  if (first) element.scope = "row";
  if (kind === "up" || kind === "resting" || kind === "down") {
    const badge = document.createElement("span");
    badge.className = `badge ${kind}`;
    badge.textContent = text;
    element.append(badge);
    return element;
  }
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

// summary is what the page says first: state, title and detail.
export function summary(model) {
  const { state, link } = model;
  if (link === "connecting") return ["connecting", "Connecting to the sidecar", ""];
  if (link === "locked") {
    return model.refused
      ? ["locked", "The bearer token is wrong", "The sidecar was asked with the token that you gave, and refused. It is the one in its --bearer-file or $WALWAKE_BEARER."]
      : ["locked", "A bearer token is needed", "The sidecar answers only who shows the token that it was started with, in --bearer-file or $WALWAKE_BEARER."];
  }
  if (link === "away") {
    const why = model.trouble ? `It said: ${model.trouble}. ` : "";
    return ["away", "The sidecar does not answer", `Since ${moment(model.since)}. ${why}What is shown is from before. The page goes on trying.`];
  }
  if (!state) return ["connecting", "Connecting to the sidecar", ""];
  if (!state.known) {
    return ["unknown", "The position is not known", state.failure || state.note || "No answer from the replica yet."];
  }
  const sentence = (s) => `${s[0].toUpperCase()}${s.slice(1)}.`;
  const more = model.trouble && ` ${sentence(model.trouble)}`;
  if (state.role === "primary") return ["following", "The server is a primary", `All that is committed is there.${more}`];
  if (state.note) return ["held", "Held back", `${sentence(state.note)}${more}`];
  const best = state.ladder.findIndex((r) => r.up || r.resting);
  const missing = state.ladder.slice(0, Math.max(best, 0)).filter((r) => r.reason);
  if (missing.length > 0) {
    const why = missing.map((r) => `${r.source}: ${r.reason}`).join("; ");
    return ["fallback", `On a fallback: ${state.source}`, `What would be better is not there: ${why}.${more}`];
  }
  if (state.ladder[best] && !state.ladder[best].up) {
    return ["following", `Following by ${state.source}`, `Nobody waits, so no stream is open.${more}`];
  }
  return ["following", `Following by ${state.source}`, `The best source of the ladder.${more}`];
}

export function status(model) {
  const [state, title, detail] = summary(model);
  if (document.body.dataset.state !== state) document.body.dataset.state = state;
  put("status-title", title);
  put("status-detail", detail);
  show("bearer", state === "locked");
  if (model.state) {
    put("server", model.state.server);
    const name = `${title}, ${model.state.server}: walwake`;
    if (document.title !== name) document.title = name;
  }
}

export function figures(model) {
  const { state } = model;
  if (!state) return;
  put("position", state.position ?? unknown);
  put("lag-bytes", bytes(state.lag.bytes));
  put("lag-time", duration(state.lag.us));
  put("rate", rate(model.rate));
  put("source", state.source || "none");
  put("waiting", String(state.waiting));
  put("streams", String(state.streams));
  put("timeline", state.timeline == null ? unknown : String(state.timeline));
  show("lag-reason", !state.lag.known);
  put("lag-reason", state.lag.known ? "" : `The lag is not known: ${state.lag.reason}.`);
}

export function ladder({ state }) {
  const rungs = state?.ladder ?? [];
  const word = (r) =>
    r.up ? { text: r.source === state.source ? "in use" : "up", kind: "up" }
    : r.resting ? { text: "resting", kind: "resting" }
    : { text: "not up", kind: "down" };
  rows("ladder-rows", rungs.map((r) => [r.source, word(r), r.reason, moment(Date.parse(r.since))]), "No source yet.", 4);
}

export function events(model) {
  const text = (e) => (e.times === 1 ? e.text : `${e.text} (${e.times} times, until ${moment(e.until)})`);
  rows("events-rows", model.events.map((e) => [moment(e.at), e.kind, text(e)]), "Nothing yet.", 3);
}

export function fleet({ fleet }) {
  if (!fleet) {
    rows("fleet-rows", [], "Not asked yet.", 7);
    return;
  }
  const word = (m) =>
    m.silent ? { text: "silent", kind: "down" } : m.unsure ? { text: "unsure", kind: "resting" } : { text: "heard", kind: "up" };
  const members = fleet.members.map((m) => {
    const at = m.position ? parseToken(m.position) : null;
    return [
      m.name, word(m), at?.lsn ?? unknown, { text: at ? String(at.timeline) : unknown, kind: "number" }, m.source || "none",
      { text: String(m.waiting), kind: "number" }, moment(Date.parse(m.heard_at)),
    ];
  });
  rows("fleet-rows", members, fleet.configured ? "No replica has said where it is." : `There is no fleet: ${fleet.reason}.`, 7);
}

const tableRows = 12;

// samples is the charts' content as a table, for who cannot see them.
export function samples(columns, [from, to]) {
  if (!$("samples").open) return;
  const [times, lsns, , lagBytes, lagTime] = columns;
  const most = (a, b) => (a == null ? b : b == null ? a : Math.max(a, b));
  const wanted = [];
  let i = times.length - 1;
  for (let k = 1; k <= tableRows && i >= 0; k++) {
    const begin = to - ((to - from) * k) / tableRows;
    if (times[i] < begin) continue;
    const at = lsns[i] == null ? "not known" : formatLSN(lsns[i]);
    const time = clock(times[i] * 1000);
    let [inBytes, inTime] = [null, null];
    for (; i >= 0 && times[i] >= begin; i--) {
      inBytes = most(inBytes, lagBytes[i]);
      inTime = most(inTime, lagTime[i]);
    }
    wanted.push([time, at, { text: bytes(inBytes), kind: "number" }, { text: duration(inTime), kind: "number" }]);
  }
  rows("samples-rows", wanted, "No data yet.", 4);
}
