// Package replication observes PostgreSQL servers for package tracker: how far
// a standby has replayed, on which timeline, and what a commit's position is.
//
// # Sources
//
// A source connects to one server and reports to a tracker.Tracker. Poll works
// on every server from PostgreSQL 14 on: it asks when somebody waits, and not
// otherwise.
//
// # Positions
//
// A position is what the server says it has replayed, never what it has
// received. It comes with the system identifier and with a timeline that was
// read after it, and it dies with the connection that it came over: a standby
// that crashes comes back lower (see tracker.Epoch).
//
// # Timelines
//
// What a role may see decides how the replayed timeline is learned:
//
//   - PostgreSQL 19: pg_stat_recovery, for members of pg_read_all_stats.
//   - before: pg_stat_wal_receiver, for members of pg_read_all_stats, and only
//     while the walreceiver streams.
//   - otherwise IDENTIFY_SYSTEM on a replication connection, for roles with
//     REPLICATION; the history of a timeline after the first is always read so.
//
// A role that may do neither still satisfies tokens without a timeline. One
// with a timeline is then not satisfied, and the wait's error says what to
// grant: a position whose timeline is not known proves nothing after a
// failover.
//
// # Tokens
//
// Capture and CaptureSQL, called on the primary after COMMIT, return the token
// that a reader waits for.
//
// # Failures
//
// Every connect and every query has a deadline. A source returns the first
// error it meets, and the Tracker runs it again. No error holds a password.
//
// # Concurrency
//
// A source is run by one Tracker at a time, and one goroutine owns each of its
// connections. Capture may be called by any number of goroutines, each with a
// connection of its own, or all with one pool.
//
// # Testing
//
// Package replicationtest starts a primary with standbys in seconds.
package replication
