// Package sidecar is the HTTP server of "walwake serve": what a tracker.Tracker
// knows, for programs that are not written in Go and for many processes that
// share one observer of a replica.
//
// # Model
//
// A Server answers from one Tracker, which its owner runs. /v1/wait is
// (*Tracker).Wait, /v1/position its State, and /v1/stream its observations as
// server-sent events. openapi.yaml, which is served too, says what each takes and
// answers; a test compares it with the answers.
//
// # Streams
//
// A hub looks at the Tracker whenever something happens and makes a frame of it,
// once for all streams. A stream always writes the latest frame: what came between
// is left out, so that nobody holds more than one frame for a client that reads
// slowly, and one that does not read for Config.WriteTimeout is dropped. Frames
// that only move the position come at most once in Config.Interval. A client that
// waits says for what, in the body of its request: the Tracker then asks for it,
// and the client hears of it at once. While there are streams the replica is asked once
// a second at least: who looks on learns as who waits does that it has fallen silent.
//
// An event with a position has the epoch that it is of, and the end of an epoch is
// an event: see package tracker/sidecar, the client.
//
// # Who may ask
//
// Without a bearer token everybody who reaches the listener may ask. From a browser
// that is any page that is open on the machine, so a request is refused when its Host
// is neither an address nor localhost nor named in Config.Hosts (DNS rebinding: the
// name of a foreign page that leads here), or when the browser says that it comes from
// another site. No CORS headers are sent, so that no other site reads an answer.
//
// What such a caller can do is bounded: Config names how many waits and streams there
// are at once, how long each may take, and how large a request may be. It can have the
// replica asked, as often as the sources allow, and learn positions; it sees no data,
// and no secret is in any answer.
//
// # Shutdown
//
// Serve answers every wait with status 503 and ends every stream with an event "end"
// before it returns.
package sidecar
