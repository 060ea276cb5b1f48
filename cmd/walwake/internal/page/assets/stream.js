// The connection to the sidecar. An EventSource cannot send a bearer token, nor tell a sidecar that is silent from one
// that has nothing to say, so the stream is read with fetch.

const keepalive = "500ms"; // the longest silence that is asked for
const lookEvery = 250; // ms
const silentAfter = 5; // looks without a byte: 1.25 s
const retryAfter = 500; // ms, and at random up to half as much again, so that many pages do not come at once

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// A Problem is an answer that is no success.
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export class Sidecar {
  #token = "";
  #given = () => {}; // called when a token was typed in
  #lastID = "";
  #abort = new AbortController(); // of the stream
  #on;

  // on has opened(), event(name, data), lost(why, at, status) after each attempt that failed, which is waited for, and
  // locked(refused).
  constructor(on) {
    this.#on = on;
  }

  // use has a bearer token sent from now on. It is in memory alone.
  use(token) {
    this.#token = token;
    this.#given();
  }

  // leave ends the stream, for now: run opens another.
  leave() {
    this.#abort.abort();
  }

  // get returns an answer's JSON, or throws.
  async get(path) {
    const answer = await this.#fetch(path, { signal: AbortSignal.timeout(5000) });
    return answer.json();
  }

  // run reads the stream, again and again.
  async run() {
    for (;;) {
      const at = { last: Date.now() }; // when something came
      try {
        await this.#read(at);
        await this.#on.lost("", at.last);
      } catch (err) {
        if (err instanceof Problem && err.status === 401) {
          const given = new Promise((done) => (this.#given = done));
          this.#on.locked(this.#token !== "");
          await given;
          continue;
        }
        await this.#on.lost(err instanceof Problem ? err.message : "", at.last, err.status);
      }
      await sleep(retryAfter * (1 + Math.random() / 2));
    }
  }

  async #fetch(path, options = {}) {
    const headers = { ...options.headers };
    if (this.#token !== "") headers.Authorization = `Bearer ${this.#token}`;
    const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      throw new Problem(answer.status, body.detail ?? `status ${answer.status}`);
    }
    return answer;
  }

  async #read(at) {
    const abort = (this.#abort = new AbortController());
    let quiet = 0;
    // Looks are counted, and not time: a page that was asleep itself has not heard anything either.
    const watch = setInterval(() => ++quiet >= silentAfter && abort.abort(), lookEvery);
    try {
      const headers = this.#lastID === "" ? {} : { "Last-Event-ID": this.#lastID };
      const answer = await this.#fetch(`v1/stream?keepalive=${keepalive}`, { headers, signal: abort.signal });
      this.#on.opened();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const lines = new Lines((name, data, id) => {
        this.#lastID = id;
        this.#on.event(name, JSON.parse(data));
      });
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        quiet = 0;
        at.last = Date.now();
        lines.add(value);
      }
    } finally {
      clearInterval(watch);
      abort.abort();
    }
  }
}

// Lines takes server-sent events apart.
class Lines {
  #rest = "";
  #fields = {};
  #event;

  constructor(event) {
    this.#event = event;
  }

  add(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line !== "") {
        const colon = line.indexOf(": ");
        if (colon > 0) this.#fields[line.slice(0, colon)] = line.slice(colon + 2);
        continue;
      }
      const { event, data, id } = this.#fields;
      this.#fields = {};
      if (event && data) this.#event(event, data, id ?? "");
    }
  }
}
