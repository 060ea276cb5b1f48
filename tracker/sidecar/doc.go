// Package sidecar is the client of "walwake serve", which runs beside a replica:
// many processes on a machine follow the replica over one connection of the
// sidecar's, and hold no session and no walsender of their own.
//
// # Model
//
// A Client is a tracker.Source. Its Observe holds one request of /v1/stream open:
// positions come down as events, and what the Tracker waits for goes up in the body
// of the request, so that the sidecar asks the replica when somebody waits, and
// tells of it at once. All else is the Tracker's: waits, limits, errors, Set.
//
//	client, err := sidecar.New(sidecar.Config{URL: "http://127.0.0.1:7432"})
//	replica, err := tracker.New(tracker.Config{Source: client, Name: "db2"})
//	go replica.Run(ctx)
//	err = replica.Wait(ctx, token)
//
// For single waits, without a Tracker, Client.Wait asks /v1/wait.
//
// # Guarantees
//
// Those of package tracker hold through the sidecar. A position lives no longer than
// the epoch that the sidecar has it from, nor than the stream: an epoch of the
// sidecar's is one here, and one that ends there ends here with the event that says
// so, or with the stream. The timeline and its history come with the epoch, so that
// tokens of older timelines are judged here as there.
//
// A sidecar that is killed ends the stream at once: its machine closes the
// connection. One that is stopped, or cannot be reached any more, is found out after
// Config.Stall without a word; until then its last position counts. Only in that
// time could a standby that crashes and comes back lower be taken for where it was.
//
// # Failures
//
// Observe returns why the stream ended, and the Tracker, which knows no position
// then, runs it again with a growing pause. Waits go on meanwhile, and end with a
// *tracker.TimeoutError that says why when their time is up: read from the primary
// then.
//
// # Concurrency
//
// A Client may be the source of one Tracker at a time. Wait may be called by any
// number of goroutines.
//
// # Testing
//
// The tests run the real command beside a real standby, kill and stop either, and
// compare what comes through with what the standby shows.
package sidecar
