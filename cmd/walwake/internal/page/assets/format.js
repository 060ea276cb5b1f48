// Text for figures. What is not known is a dash.

export const unknown = "–";

const places = (v) => (v < 10 ? 2 : v < 100 ? 1 : 0);

function scaled(value, step, units) {
  let i = 0;
  while (value >= step && i < units.length - 1) {
    value /= step;
    i++;
  }
  return `${i === 0 ? Math.round(value) : Number(value.toFixed(places(value)))} ${units[i]}`;
}

// Bytes with PostgreSQL's units, which are of 1024.
export const bytes = (n) => (n == null ? unknown : scaled(n, 1024, ["B", "kB", "MB", "GB", "TB"]));

export const rate = (n) => (n == null ? unknown : `${bytes(n)}/s`);

export function duration(us) {
  if (us == null) return unknown;
  if (us < 1e6) return scaled(us, 1000, ["µs", "ms"]);
  const s = us / 1e6;
  if (s < 60) return `${Number(s.toFixed(places(s)))} s`;
  const whole = Math.round(s);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const two = (n) => String(n).padStart(2, "0");

// Time of day, of milliseconds since 1970, in the time zone of who looks.
export function clock(ms) {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

// The same with the date, where that is not today's.
export function moment(ms) {
  const d = new Date(ms);
  if (d.toDateString() === new Date().toDateString()) return clock(ms);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock(ms)}`;
}

// An LSN as a number: exact up to 8 PB, which is enough for a chart.
export function parseLSN(text) {
  const [high, low] = text.split("/");
  return parseInt(high, 16) * 2 ** 32 + parseInt(low, 16);
}

export function formatLSN(n) {
  const hex = (v) => v.toString(16).toUpperCase();
  return `${hex(Math.floor(n / 2 ** 32))}/${hex(n % 2 ** 32)}`;
}

// A token is v1.system.timeline.high-low.
export function parseToken(text) {
  const [, , timeline, lsn] = text.split(".");
  return { timeline: Number(timeline), lsn: lsn.replace("-", "/") };
}
