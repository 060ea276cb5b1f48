// What is known, and was in the last minutes.

import { parseLSN, parseToken } from "./format.js";

const keep = 15 * 60; // s
const apart = 0.1; // s between two samples
const maxEvents = 100;
const rateOver = 10; // s

export class Model {
  link = "connecting"; // connecting, open, away, locked
  since = Date.now(); // when the sidecar was last heard of, in ms
  trouble = ""; // why it is away, where it says so
  refused = false; // whether a bearer token was sent, and was wrong
  state = null; // the latest Position of the sidecar; null: none yet
  fleet = null;
  events = []; // newest first
  columns = [[], [], [], [], []]; // time in s, and what a sample holds

  opened() {
    if (this.link === "away") this.#note("the sidecar answers again");
    this.link = "open";
    this.trouble = "";
  }

  lost(why, at) {
    if (why) this.trouble = why;
    if (this.link !== "away") {
      this.since = at;
      if (this.state) this.#note(`the sidecar does not answer${this.trouble && `: ${this.trouble}`}`);
    }
    this.link = "away";
    this.#gap();
  }

  locked(refused) {
    this.link = "locked";
    this.refused = refused;
    this.#gap();
  }

  // take is given what the stream says.
  take(name, data) {
    if (name === "state") {
      this.state = data;
      this.sample();
    } else if (name === "position" && this.state) {
      const { state } = this;
      state.epoch = data.epoch;
      state.position = data.lsn;
      state.lag.bytes = data.lag_bytes ?? null;
      state.lag.us = data.lag_us ?? null;
      state.waiting = data.waiting ?? state.waiting;
      this.sample();
    } else if (name === "event") {
      this.#event({ at: Date.parse(data.since), until: Date.parse(data.at), times: data.times, kind: data.kind, text: data.text });
    } else if (name === "end") {
      this.trouble = data.detail;
    }
  }

  // sample remembers what is known now.
  sample() {
    const { state } = this;
    if (this.link !== "open" || !state) return;
    if (!state.known) {
      this.#gap();
      return;
    }
    const lsn = parseLSN(state.position);
    let primary = state.lag.primary ? parseLSN(parseToken(state.lag.primary).lsn) : null;
    if (state.lag.bytes != null) primary = lsn + state.lag.bytes;
    this.#add([lsn, primary, state.lag.bytes, state.lag.us]);
  }

  // rate is in bytes per second, over the last seconds; null: not known.
  get rate() {
    const [times, lsns] = this.columns;
    const last = times.length - 1;
    if (this.link !== "open" || last < 0 || lsns[last] == null) return null;
    let i = last;
    while (i > 0 && times[last] - times[i] < rateOver && lsns[i - 1] != null) i--;
    const took = times[last] - times[i];
    return took < 1 ? null : Math.max(0, (lsns[last] - lsns[i]) / took);
  }

  #gap() {
    const [, lsns] = this.columns;
    if (lsns.length > 0 && lsns.at(-1) !== null) this.#add([null, null, null, null]);
  }

  #add(values) {
    const [times] = this.columns;
    const now = Date.now() / 1000;
    const gap = values[0] === null || this.columns[1].at(-1) === null;
    if (times.length > 1 && !gap && now - times.at(-2) < apart) for (const c of this.columns) c.pop();
    if (now < times.at(-1) - 1) for (const c of this.columns) c.length = 0; // the clock was put back
    times.push(Math.max(now, (times.at(-1) ?? 0) + 1e-3));
    values.forEach((v, i) => this.columns[i + 1].push(v));
    const old = times.findIndex((t) => t >= now - keep);
    if (old > 100) for (const c of this.columns) c.splice(0, old);
  }

  #note(text) {
    const at = Date.now();
    this.#event({ at, until: at, times: 1, kind: "sidecar", text });
  }

  // #event remembers an event. One that is told again, such as of a server that is still away, is the one that began
  // with it.
  #event(e) {
    const told = this.events.find((was) => was.at === e.at && was.kind === e.kind && was.text === e.text);
    if (told) {
      Object.assign(told, e);
      return;
    }
    this.events.unshift(e);
    this.events.sort((a, b) => b.at - a.at);
    this.events.length = Math.min(this.events.length, maxEvents);
  }
}
