// Package replication observes PostgreSQL servers for package tracker: how far
// a standby has replayed, on which timeline, and what a commit's position is.
//
// # Model
//
// A Ladder is the tracker.Source for one server. It holds one session, which is
// the epoch, and every position that it reports is the server's own answer over
// that session, with a timeline that the server was asked for after it. The
// kinds differ only in when the server is asked:
//
//   - Physical listens to the WAL that the standby passes on, as a standby of
//     its own would, and asks when some has come: replay follows.
//   - Logical listens to the keepalives of a temporary logical slot, and asks
//     when replay has come further.
//   - WaitFor has the server answer when replay has come far enough.
//   - Poll asks at once when somebody begins to wait, and then ever less often.
//
// The best kind that works is used. A stream is opened when somebody has waited
// for 10 ms, up to which asking is as quick and costs the server less, and closed
// when no wait has lasted for a while; until it is up, and when it drops, there is
// polling, over the same session and without a gap. tracker.State says which
// kind is in use and why each better one is not.
//
// # Guarantees
//
// A stream may drop, stall, repeat itself, lose a wake-up or lead to another
// server: that costs time, never correctness. While somebody waits the server is
// asked again at the latest after an eighth of the time waited so far, within
// Config.MinInterval and MaxInterval. While nobody waits it is asked once in
// Config.IdleInterval.
//
// A position is what the server has replayed, not what it has received. It
// dies with the session: a standby that crashes comes back lower (see
// tracker.Epoch).
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
// # What holds replay back
//
// While somebody waits the server is also asked, ten times a second, why replay
// does not move: it is paused or delayed, a query on the standby is in its way,
// no walreceiver runs. Where waits are short, or tracker.Refresh is called
// instead, it is asked once a second. The answer is in tracker.State's Note and in
// the wait's error. A role without pg_read_all_stats does not see queries.
//
// # Tokens
//
// Capture and CaptureSQL, called on the primary after COMMIT, return the token
// that a reader waits for.
//
// # Failures
//
// Every connect, query and send has a deadline. A Ladder returns the first
// error of its session, and the Tracker runs it again; a stream's errors stay
// within it, as reasons. No error holds a password.
//
// A standby that is promoted while a stream is open has, until it closes, a
// walsender of ours among its standbys: where synchronous_standby_names is '*',
// name the real ones.
//
// # Concurrency
//
// A Ladder is run by one Tracker at a time. Its session is asked by whoever has
// a reason to, under one mutex, and read by one goroutine; each stream is owned
// by two, one that reads and one that writes. Capture may be called by any
// number of goroutines, each with a connection of its own, or all with one pool.
//
// # Testing
//
// The kinds run against scripted servers in testing/synctest bubbles, and
// against real ones that are crashed, promoted, paused and cut off. Package
// replicationtest starts a primary with standbys in seconds.
package replication
