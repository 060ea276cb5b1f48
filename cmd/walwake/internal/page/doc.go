// Package page is the web page of "walwake serve": what the sidecar knows, for a
// person who looks.
//
// # Model
//
// Handler serves a few files that are compiled in: HTML, CSS and ES modules as they
// are written, with no build step and no framework, and uPlot for the charts, minified
// and with its licence beside it in assets/uplot. A browser that has them needs nothing
// but the sidecar: the Content-Security-Policy allows no other host and no inline code.
//
// The page reads /v1/stream, and now and then /v1/position and /v1/fleet. It reads the
// stream with fetch, as an EventSource cannot send the header Authorization: where the
// sidecar wants a bearer token the page asks for it, and keeps it in the memory of the
// tab alone. When the sidecar falls silent the page says since when, and tries again
// until it is back.
//
// What the charts show is what the page has seen since it was opened: the sidecar keeps
// no history.
//
// # Files
//
// stream.js holds the connection, model.js what is known, chart.js the charts, view.js
// writes the rest into the document, format.js makes text of figures, and main.js ties
// them together.
//
// # Testing
//
// The tests start a walwake serve beside a real standby and look at the page with a
// headless Chromium. Without one they are skipped, unless WALWAKE_CHROMIUM is set, and
// with WALWAKE_CHROMIUM=off in any case, as in .ci/run: on a busy machine a browser
// may not draw for a minute.
package page
